"""Talks with served models and blind battles between them, kept on disk; a client of the server; strengths out of votes."""

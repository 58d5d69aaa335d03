"""What the security tests share, and their long form: `python -m tests.security.long`."""

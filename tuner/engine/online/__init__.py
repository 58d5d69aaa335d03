"""Learning from rewards: a model answers prompts, the answers are scored, and it learns from the scores."""

"""A model behind OpenAI's interface, on loopback, in a run's worker process."""

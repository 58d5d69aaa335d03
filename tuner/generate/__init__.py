"""The one way in which text is made from a model: batched, streamed, stopped, seeded."""

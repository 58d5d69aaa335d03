"""Pictures of a data set: where they lie, how they are opened, and how many tokens a model makes of them."""

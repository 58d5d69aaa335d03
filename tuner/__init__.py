"""tuner: a studio for fine-tuning language models."""

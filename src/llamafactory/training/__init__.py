"""Training: scoring, the one trainer, checkpoints, callbacks. Knows objectives as values, never by name."""

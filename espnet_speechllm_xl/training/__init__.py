"""Training: batches, learning rates, checks of the options, the trainer.  Imports corpus and model, never a system."""

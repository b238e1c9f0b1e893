"""Tokenizers, batches, schedules, checks of options and the trainer.  Imports corpus and model; never a system."""

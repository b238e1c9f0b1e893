"""Searches, streams and their output.  Imports corpus and model; never a system: any model with chunks will do."""

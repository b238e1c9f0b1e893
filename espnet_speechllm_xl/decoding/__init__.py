"""Searches, streams and what they write.  Imports corpus and model; never a system: any model with chunks will do."""

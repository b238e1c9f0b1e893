"""Layers and what they compute: features, encoder, decoder, CTC, alignment.  Imports corpus; never a search."""

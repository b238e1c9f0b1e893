"""The layers of the models: features, encoder, decoder, CTC, alignment.  Imports corpus; never a search."""

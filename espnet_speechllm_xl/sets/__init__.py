"""Work on whole dump sets: aligning, decoding, streaming, and tests of a model on many recordings.

Never imports bin or systems.
"""

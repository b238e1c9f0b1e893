"""Work on whole dump sets, shared out over processes: aligning, decoding, streaming.  Never imports bin or systems."""

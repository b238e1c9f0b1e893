"""Recordings, Kaldi tables, transcripts and dumps: speech before a model hears it.  Never imports another room."""

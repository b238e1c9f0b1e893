"""ESPnet tasks: what ``train`` and ``train-aligner`` run."""

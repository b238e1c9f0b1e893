"""Measurements of speed: what a machine reaches with this package, and what its arithmetic and memory would allow."""

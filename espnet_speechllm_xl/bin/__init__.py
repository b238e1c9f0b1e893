"""Commands; cli.py finds them."""

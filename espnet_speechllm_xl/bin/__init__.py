"""Commands: each parses its options, calls another room and prints.  cli.py finds them; no other room imports them."""

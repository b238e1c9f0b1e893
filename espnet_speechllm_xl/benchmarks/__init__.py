"""The command ``bench``: how long the parts of the recogniser take, beside floors, peers and other checkouts.

``worker.py`` measures, in a process of its own; every other file decides what is measured, and writes what came out.
"""

"""Measurements of speed: the parts of the recogniser beside floors, peers and other checkouts.

``worker.py`` measures, in a process of its own; the other files of the command ``bench`` decide what is measured, and
write what came out.
"""

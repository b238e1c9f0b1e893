"""Measurements of speed: the recogniser's parts beside floors, peers and other checkouts; what a GPU allows.

The command ``bench`` measures on a CPU: ``worker.py`` in a process of its own, and the others decide what, and write
what came out.  The command ``load-test`` measures a server: ``load_*.py``.  The GPU check has its own files,
``gpu_*.py`` and ``made_up.py``.
"""

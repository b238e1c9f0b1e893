"""An empty stand-in for ``g2p_en``, which ESPnet's phoneme tokenizer imports; nothing here needs phonemes.

The real one takes seconds to import (the ``nltk`` and ``inflect`` packages), and nltk tries to download a tagger and a
dictionary when it does not find them, which can hang behind a firewall.
"""

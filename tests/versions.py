"""The versions that tests depend on most, of the environment that runs it: a row of the table in docs/installation.md.

python tests/versions.py
"""

import platform
from importlib.metadata import version

PACKAGES = ("espnet", "torch", "torchaudio", "transformers", "sentencepiece", "numpy")


def found():
    """``{name: version}``, Python first, without what follows a plus (the kind of build)."""
    return {"Python": platform.python_version(), **{name: version(name).partition("+")[0] for name in PACKAGES}}


if __name__ == "__main__":
    print(", ".join(f"{name} {number}" for name, number in found().items()))

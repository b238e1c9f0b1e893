"""What differs between the releases of ESPnet that the package runs on: 202511, and 202609 to 202611.

Nothing else asks which one is installed.  Python 3.10 and 3.11 have 202511, the others mostly 202611.
"""

import contextlib
import datetime
import importlib
import io
import sys
import types
from importlib.machinery import ModuleSpec
from importlib.metadata import version

from espnet_speechllm_xl.errors import UserError, of_machine
from espnet_speechllm_xl.files import loading_error

OLDEST, NEXT = 202511, 202612


def espnet_release():
    """Year and month of the installed ESPnet as a number: 202610 of ``202610.post2``."""
    return int(version("espnet").split(".")[0])


def check_stack():
    """Raise UserError for an ESPnet that the package was not made for, or a torchaudio that torch cannot load."""
    if not OLDEST <= espnet_release() < NEXT:
        raise UserError(f"ESPnet {version('espnet')} is not supported: pip install 'espnet>={OLDEST},<{NEXT}'")
    torch, torchaudio = version("torch"), version("torchaudio")
    if torch.startswith("2.11.") and torchaudio == "2.11.1":
        raise UserError(f"torchaudio {torchaudio} does not load with torch {torch}: pip install torchaudio==2.11.0")


def load_checkpoint(load, path, **kwargs):
    """``torch.load``, given as ``load``, of a ``checkpoint.pth`` that any of the releases wrote.

    Those before 202611 keep NumPy numbers and time spans in it, which a safe load refuses unless they are allowed.

    Raises:
        OSError: the file is damaged.  Of any other error ESPnet from 202609 on would ask whoever sits at the terminal
            whether to load the file unsafely.
    """
    import numpy
    from torch.serialization import safe_globals

    kinds = (getattr(numpy.dtypes, name) for name in numpy.dtypes.__all__)
    allowed = [datetime.timedelta, numpy.dtype, numpy._core.multiarray.scalar, *kinds]
    try:
        with safe_globals(allowed):
            return load(path, **kwargs)
    except Exception as error:  # torch raises many kinds, none of its own
        if isinstance(error, OSError) and of_machine(error):
            raise
        raise OSError(loading_error(error)) from error


def resumes_what_had_stopped():
    """Whether ESPnet itself leaves a training alone that had come to its end by ``patience`` when it is resumed."""
    return espnet_release() >= 202611


@contextlib.contextmanager
def without_notice():
    """ESPnet is imported within the block without what it prints about an optional package.

    202511 prints that to standard output, where transcripts go, the others to standard error.
    """
    import torch  # noqa: F401  # its loggers keep the standard error that they find

    old = espnet_release() < 202609
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        importlib.import_module(f"{'espnet' if old else 'espnet2.legacy'}.nets.pytorch_backend.transformer.attention")
    yield


@contextlib.contextmanager
def without_g2p():
    """Within the block ``g2p_en``, which ``espnet2.tasks.asr`` of ESPnet 202511 imports, is an empty module.

    Nothing here needs phonemes.  The real module takes seconds to import, and its nltk tries to download a tagger,
    which can hang behind a firewall.
    """
    if espnet_release() >= 202609 or "g2p_en" in sys.modules:
        yield
        return
    module = sys.modules["g2p_en"] = types.ModuleType("g2p_en")
    module.__spec__ = ModuleSpec("g2p_en", None)  # transformers looks for it
    try:
        yield
    finally:
        del sys.modules["g2p_en"]

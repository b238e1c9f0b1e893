"""Differences between the releases of ESPnet that the package runs on: 202511, and 202609 to 202611.

No other module asks which one is installed.  Python 3.10 and 3.11 have 202511, later ones mostly 202611.
"""

import contextlib
import datetime
import importlib
import io
import sys
import types
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from os import PathLike

from espnet_speechllm_xl.errors import UserError, of_machine
from espnet_speechllm_xl.files import loading_error

OLDEST, NEXT = 202511, 202612


def espnet_release() -> int:
    """Return year and month of the installed ESPnet as a number: 202610 for ``202610.post2``."""
    return int(version("espnet").split(".")[0])


def check_stack() -> None:
    """Raise UserError for a release of ESPnet that the package does not know, or a torchaudio that does not load."""
    if not OLDEST <= espnet_release() < NEXT:
        raise UserError(f"ESPnet {version('espnet')} is not supported: pip install 'espnet>={OLDEST},<{NEXT}'")
    torch, torchaudio = version("torch"), version("torchaudio")
    if torch.startswith("2.11.") and torchaudio == "2.11.1":
        raise UserError(f"torchaudio {torchaudio} does not load with torch {torch}: pip install torchaudio==2.11.0")


def load_checkpoint(load: Callable[..., dict], path: str | PathLike, **options: object) -> dict:
    """Load a ``checkpoint.pth`` of any of the releases.

    Releases before 202611 put NumPy numbers and time spans into it.  A safe load refuses both unless they are allowed.

    Args:
        load: ``torch.load``.
        path: the checkpoint.
        options: keyword arguments of ``load``.

    Raises:
        OSError: the file is damaged.  It must be an OSError: at any other error ESPnet from 202609 on asks the user at
            the terminal whether to load the file unsafely.
    """
    import numpy
    from torch.serialization import safe_globals

    multiarray = importlib.import_module("numpy._core.multiarray")  # NumPy's type stubs leave it out
    kinds = (getattr(numpy.dtypes, name) for name in numpy.dtypes.__all__)
    allowed = [datetime.timedelta, numpy.dtype, multiarray.scalar, *kinds]
    try:
        with safe_globals(allowed):
            return load(path, **options)
    except Exception as error:  # torch raises many kinds, none of its own
        if isinstance(error, OSError) and of_machine(error):
            raise
        raise OSError(loading_error(error)) from error


def resumes_what_had_stopped() -> bool:
    """Tell whether ESPnet itself trains no further when it resumes a training that ``patience`` had ended."""
    return espnet_release() >= 202611


@contextlib.contextmanager
def without_notice() -> Iterator[None]:
    """Silence ESPnet's notice about an optional package while the block imports ESPnet.

    202511 prints the notice to standard output, where transcripts go, the others to standard error.
    """
    import torch  # noqa: F401  # before the redirection: its loggers keep the standard error that they find

    old = espnet_release() < 202609
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        importlib.import_module(f"{'espnet' if old else 'espnet2.legacy'}.nets.pytorch_backend.transformer.attention")
    yield


@contextlib.contextmanager
def without_g2p() -> Iterator[None]:
    """Replace ``g2p_en`` by an empty module within the block; ``espnet2.tasks.asr`` of ESPnet 202511 imports it.

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

"""Corpora on the web: an archive is fetched, perhaps in several attempts, and extracted whole or not at all."""

import http.client
import os
import sys
import tarfile
import urllib.error
import urllib.request
import zlib
from http.client import HTTPResponse
from os import PathLike
from pathlib import Path
from typing import Any

from espnet_speechllm_xl.errors import ACTIONS, UserError, action, of_machine
from espnet_speechllm_xl.files import temporary_folder

PIECE = 1 << 20  # bytes


def fetch(url: str, target: str | PathLike) -> None:
    """Download ``url`` to ``target``, with a progress bar; a broken attempt is continued where it stopped.

    Raises:
        UserError: the download failed; the message says what to do.
        OSError: the disk refused.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            continued = have and response.status == 206
            _copy(response, partial, have if continued else 0)
    except urllib.error.HTTPError as error:
        if not (have and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE):
            raise _failure(url, target, partial, error) from None
        # All bytes are here: an attempt stopped before the renaming, unless the archive on the web has changed.
        if error.headers.get("Content-Range") != f"bytes */{have}":
            partial.unlink()
            fetch(url, target)
            return
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in ACTIONS:  # of the disk, not of the web
            error.filename = error.filename or str(partial)
            raise
        raise _failure(url, target, partial, error) from None
    os.replace(partial, target)


def _failure(url: str, target: Path, partial: Path, error: Exception) -> UserError:
    kept = " (the same command continues what has come)" if partial.exists() else ""
    return UserError(
        f"{url} could not be fetched ({error}){kept}: try again, or get {target.name} another way and pass "
        "`--downloads DIR`, DIR being the directory that holds it"
    )


def _copy(response: HTTPResponse, partial: Path, have: int) -> None:
    """Write a response behind the first ``have`` bytes of ``partial``; raise OSError when bytes are missing."""
    from tqdm import tqdm

    promised = response.headers.get("Content-Length")
    total = have + int(promised) if promised is not None else None
    bar = tqdm(
        total=total, initial=have, unit="B", unit_scale=True, desc=partial.name[1:-5], file=sys.stderr, mininterval=5
    )
    with open(partial, "ab" if have else "wb") as stream, bar:
        while piece := response.read(PIECE):
            stream.write(piece)
            bar.update(len(piece))
        found = stream.tell()
    if total is not None and found != total:
        raise OSError(f"{found} of {total} bytes came")


def extract(archive: str | PathLike, name: str, out: str | PathLike, source: str) -> None:
    """Extract a folder of a tar archive, whole or not at all.

    Args:
        archive: the file.
        name: path of the folder inside of it.
        out: path that the folder gets.
        source: where the archive comes from, for messages.

    Raises:
        UserError: it cannot be extracted; the message says what to do.
    """
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary_folder(f".{out.name}.", out.parent) as temporary:
            with tarfile.open(archive) as tar:
                # Older Pythons lack the filter that keeps members inside of the directory.
                safe: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
                tar.extractall(temporary, **safe)
            if not (temporary / name).is_dir():
                raise UserError(f"{archive} holds no {name}: it is another archive; get it from {source}")
            os.replace(temporary / name, out)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        if isinstance(error, OSError) and of_machine(error):
            raise UserError(
                f"{archive} cannot be extracted into {out.parent}: {error.strerror}: {action(error)}"
            ) from None
        raise UserError(f"{archive} cannot be extracted ({error}): delete it and get it again from {source}") from None

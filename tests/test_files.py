"""Files that cannot be written: the error names them, whatever a library makes of it, and nothing is left behind."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from limits import longest_file

from espnet_speechllm_xl import files
from espnet_speechllm_xl.bin import guard
from espnet_speechllm_xl.corpus.audio import write_flac
from espnet_speechllm_xl.corpus.kaldi import write_table
from espnet_speechllm_xl.errors import UserError, of_machine


def by_torch(path):
    import torch

    from espnet_speechllm_xl.training.trainer import _atomic_save

    _atomic_save({"weight": torch.ones(10000)}, path)


def by_zip(path):
    with files.atomic_write(path, "wb") as stream, zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("member", bytes(40000))


def by_text(path):
    with files.atomic_write(path) as stream:
        stream.write("ä" * 20000)


def by_copy(path):
    files.copy_file(sys.executable, path)


def by_plot(path):
    from espnet_speechllm_xl.evaluation.plots import _figure, save

    save(_figure(4, 4)[0], path)


def by_hiding(path):
    with files.atomic_write(path, "wb") as stream:
        try:
            stream.write(bytes(40000))
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0") from None


def by_flac(path):
    write_flac(path, np.random.default_rng(0).integers(-9999, 9999, 20000).astype(np.int16), 16000)


WRITERS = {
    "flac": by_flac,
    "table": lambda path: write_table(path, {f"u{number}": "word" for number in range(4000)}),
    "pth": by_torch,
    "zip": by_zip,
    "txt": by_text,
    "so": by_copy,
    "png": by_plot,
    "bin": by_hiding,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_cannot_be_written_is_named_and_not_there(tmp_path, kind):
    path = tmp_path / "below" / f"name.{kind}"
    for old in (False, True):
        with longest_file(1000), pytest.raises(OSError) as caught:
            WRITERS[kind](path)
        assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
        assert of_machine(caught.value).startswith(f"{path} cannot be written: File too large: raise the limit")
        assert [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()] == ([b"old"] if old else [])
        assert path.parent.exists() == old  # nor an empty folder
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"old")
    if kind != "bin":
        WRITERS[kind](path)
        assert path.stat().st_size > 1000


def test_a_place_that_is_none_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as caught, files.atomic_write(tmp_path / "file" / "below"):
        pass
    assert of_machine(caught.value).startswith(f"{tmp_path / 'file'} cannot be written or read: ")
    with pytest.raises(OSError) as caught, files.atomic_write("/proc/name"):  # no place for files, also for root
        pass
    assert of_machine(caught.value).startswith("/proc/name cannot be written or read: No such file")


def test_errors_of_the_reader_of_a_block_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, files.atomic_write(tmp_path / "name"):
        open(tmp_path / "absent")
    assert caught.value.filename == str(tmp_path / "absent") and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error, line",
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "x"),
            "x cannot be written: No space left on device: free",
        ),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded", "x"),
            "x cannot be written: Disk quota exceeded: free",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "x"),
            "x cannot be written: Read-only file system: name",
        ),
        (
            OSError(errno.EACCES, "Permission denied", "x"),
            "x cannot be written or read: Permission denied: get",
        ),
        (
            OSError(errno.EIO, "Input/output error", b"x"),
            "x cannot be written or read: Input/output error: the",
        ),
        (OSError(errno.EBADF, "Bad file descriptor", 3), "a file cannot be written or read: Bad file descriptor: mend"),
        (
            OSError(errno.ENOENT, "No such file or directory", "a", None, "b"),
            "b cannot be written or read: No such file",
        ),
        (
            OSError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/var/tmp']"),
            "no temporary file can be written in ['/tmp', '/var/tmp']: free some room there, or set TMPDIR to a folder",
        ),
        (MemoryError(), "memory is used up: give a smaller batch"),
        (RuntimeError("CUDA out of memory. Tried\nto allocate"), "memory is used up (CUDA out of memory. Tried to all"),
        (RuntimeError("shapes differ"), None),
        (OSError("no number"), None),
        (OSError(errno.EINVAL, "Invalid argument"), None),
        (ValueError("a bug"), None),
    ],
)
def test_errors_of_the_machine(error, line):
    found = of_machine(error)
    assert found is line is None or (found.startswith(line) and "\n" not in found)


def test_every_end_of_a_command(capsys):
    def ending(error):
        def command():
            raise error

        code = guard.run(command, "tool", bad_input=1)
        return code, capsys.readouterr().err

    assert ending(UserError("bad x: mend it")) == (1, "tool: bad x: mend it\n")
    assert ending(KeyboardInterrupt()) == (130, "tool: interrupted\n")
    assert ending(OSError(errno.ENOSPC, "No space left", "x"))[0] == 2
    code, said = ending(ZeroDivisionError("a bug"))
    assert code == 3 and "Traceback" in said and "in command" in said
    assert guard.run(lambda: None, "tool") == 0 and guard.run(lambda: 1, "tool") == 1


PRINTING = "import sys; from espnet_speechllm_xl.bin import guard; sys.exit(guard.run(lambda: print('x' * {}), 'tool'))"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize("length", [1, 100000])
def test_an_output_that_cannot_be_written_is_one_line(length):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", PRINTING.format(length)], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("tool: the standard output cannot be written: No space left on device: free")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_temporary_folder_does_not_outlive_a_signal(tmp_path, number):
    script = (
        "import sys, time; from espnet_speechllm_xl import files\n"
        "with files.temporary_folder('model.', sys.argv[1]) as folder:\n"
        "    (folder / 'half').touch(); print(folder, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # under nohup SIGHUP would stay ignored
    ) as process:  # fmt: skip
        assert process.stdout.readline().startswith(f"{tmp_path}/model.") and len(list(tmp_path.iterdir())) == 1
        process.send_signal(number)
        assert process.wait() == 128 + number
    assert not any(tmp_path.iterdir())


def test_no_lock_where_it_is_refused(tmp_path):
    """Of local/lock.sh, by a stand-in for flock on a file system that has none."""
    if not shutil.which("flock"):
        pytest.skip("without flock nobody asks for a lock")
    lock = os.path.join(os.path.dirname(__file__), "..", "local", "lock.sh")
    script = f'set -euo pipefail; . "{lock}"; exec 9>>x; hold_lock 9 folder echo; echo done'
    for answer, reason in (
        ("echo 'flock: 9: No locks available' >&2; exit 71", "flock: 9: No locks available"),
        ("echo 'flock: Function not implemented' >&2; exit 1", "flock: Function not implemented"),
        ("exit 66", "flock ended with status 66"),
    ):
        (tmp_path / "flock").write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / "flock").chmod(0o755)
        path = f"{tmp_path}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True,
            timeout=20,
        )  # fmt: skip
        said = f"no lock can be had on folder ({reason}): going on without; start nothing else that works there"
        assert (done.returncode, done.stdout.splitlines()) == (0, [said, "done"]), done.stderr

"""Processes that die: what they had is named, tried alone and left out; the others are done."""

import os
import signal
import time
from pathlib import Path

import pytest

from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.sets import batch_jobs
from espnet_speechllm_xl.workers import over_processes

BATCHES = [["a", "b"], ["c", "d", "e"], ["f"], ["g", "h"]]
EVERYTHING = [item for batch in BATCHES for item in batch]


def upper(settings):
    """Worker of strings that dies of those in ``settings``: by a signal, or with a status, or once only."""

    def work(batch):
        for item in batch:
            how = settings.get(item)
            if how == "once":
                mark = Path(settings["folder"], item)
                if mark.exists():
                    continue
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            elif how == "status":
                os._exit(7)
            elif how == "raises":
                raise EOFError(f"{item} has no end")
            elif how is not None:
                os.kill(os.getpid(), how)
                time.sleep(60)
        return [item.upper() for item in batch]

    return work


def dying(settings):
    os.kill(os.getpid(), settings["signal"])


def run(settings, nj=2, batches=BATCHES):
    """Results by item, after a check that each batch came once and in its order."""
    left_out = {}

    def crashed(item, reason):
        left_out[item] = reason
        return f"-{item}"

    found = dict(over_processes(batches, upper, settings, nj, crashed))
    assert sorted(found) == list(range(len(batches)))
    for index, results in found.items():
        assert [result[-1].lower() for result in results] == batches[index]
    assert {item for results in found.values() for item in results if item[0] == "-"} == {f"-{i}" for i in left_out}
    return left_out


@pytest.mark.parametrize("nj", [1, 2, 9])
def test_everything_is_done(nj):
    assert run({}, nj) == {}
    assert run({}, nj, []) == {}


@pytest.mark.parametrize(
    "how, says",
    [
        (signal.SIGSEGV, "crashed (SIGSEGV): look at this input, or leave it out"),
        (signal.SIGABRT, "crashed (SIGABRT): look at this input"),
        (signal.SIGBUS, "crashed (SIGBUS): a file was cut while it was read, or the disk or /dev/shm is full"),
        (signal.SIGILL, "crashed (SIGILL): a library was built for another processor"),
        (signal.SIGKILL, "was killed, most often because memory ran out (SIGKILL): give a smaller --nj"),
        ("status", "crashed (status 7): look at this input"),
    ],
)
def test_what_a_process_dies_of_is_left_out_with_the_cause(capfd, how, says):
    left_out = run({"d": how})
    assert list(left_out) == ["d"] and f"the process that worked on it {says}" in left_out["d"]
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("a worker process")]
    assert [line.rpartition("it had: ")[2] for line in said] == ["c, d, e", "d"]


def test_what_goes_well_alone_is_not_left_out(tmp_path):
    assert run({"d": "once", "folder": str(tmp_path)}) == {} and (tmp_path / "d").exists()


def test_several_that_die(capfd):
    assert set(run({"b": signal.SIGSEGV, "f": signal.SIGSEGV, "g": signal.SIGSEGV})) == {"b", "f", "g"}


def test_processes_that_always_die_are_an_error(capfd):
    with pytest.raises(UserError, match=r"a worker process crashed \(SIGSEGV\) with .*, as 3 others .*: a library"):
        run(dict.fromkeys(EVERYTHING, signal.SIGSEGV))
    with pytest.raises(
        UserError, match=r"was killed, .*memory ran out \(SIGKILL\) before it began: give a smaller --nj"
    ):
        list(over_processes(BATCHES, dying, {"signal": signal.SIGKILL}, 2, batch_jobs.not_done))
    with pytest.raises(UserError, match=r"crashed \(SIGSEGV\) before it began: a library .*, whatever the input: "):
        list(over_processes(BATCHES, dying, {"signal": signal.SIGSEGV}, 2, batch_jobs.not_done))


def test_one_that_is_stopped_from_outside_leaves_nothing_out():
    with pytest.raises(UserError, match=r"was stopped from outside \(SIGTERM\) with .*: run the same command again"):
        run({"f": signal.SIGTERM})


def test_errors_keep_their_kind_and_traceback():
    with pytest.raises(EOFError, match="d has no end") as caught:
        run({"d": "raises"})
    assert "in work" in str(caught.value.__cause__)

"""Batches over processes: order, resuming, discarding, errors.  The workers are plain arithmetic."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.sets import batch_jobs

BATCHES = [[1, 2], [3], [4, 5, 6], [7], [8, 9]]


def squares(settings):
    """Worker that notes each batch in ``settings["log"]``."""

    def work(batch):
        with open(settings["log"], "a", encoding="utf-8") as log:
            log.write(f"{batch[0]} {os.getpid()}\n")
        return [[number, number**2] for number in batch]

    return work


def broken(settings):
    raise UserError("the model is truncated: copy it again")


def endless(settings):
    """Worker that notes its process and never ends."""
    with open(settings["log"], "a", encoding="utf-8") as log:
        log.write(f"{os.getpid()}\n")
    time.sleep(600)


def dying(settings):
    os._exit(9)


def run(tmp_path, *, batches=BATCHES, worker=squares, nj=1, shard=None, crashed=batch_jobs.not_done, **settings):
    settings = {"log": str(tmp_path / "log"), **settings}
    return batch_jobs.run_batches(batches, worker, settings, tmp_path / "parts", nj, "test", shard, crashed=crashed)


def log(tmp_path):
    path = tmp_path / "log"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    path.write_text("")
    return [int(line.split()[0]) for line in lines]


EXPECTED = [[number, number**2] for number in range(1, 10)]


def test_results_come_in_order(tmp_path):
    assert run(tmp_path) == EXPECTED
    assert log(tmp_path) == [1, 3, 4, 7, 8]
    assert run(tmp_path, batches=[]) == []


def test_finished_batches_are_not_done_again(tmp_path, monkeypatch):
    write, written = batch_jobs.atomic_write, []

    def killed(path, *args):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        return write(path, *args)

    monkeypatch.setattr(batch_jobs, "atomic_write", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    monkeypatch.setattr(batch_jobs, "atomic_write", write)
    assert log(tmp_path) == [1, 3, 4]
    assert run(tmp_path) == EXPECTED
    assert log(tmp_path) == [4, 7, 8]  # 4 was computed but not kept
    assert run(tmp_path) == EXPECTED and log(tmp_path) == []
    batch_jobs.finish(tmp_path / "parts")
    assert not (tmp_path / "parts").exists()
    assert run(tmp_path) == EXPECTED and log(tmp_path) == [1, 3, 4, 7, 8]


def test_other_settings_or_batches_discard_what_was_done(tmp_path):
    run(tmp_path)
    log(tmp_path)
    assert run(tmp_path, beam=4) == EXPECTED and log(tmp_path) == [1, 3, 4, 7, 8]
    assert run(tmp_path, beam=4) == EXPECTED and log(tmp_path) == []
    fewer = BATCHES[1:]
    assert run(tmp_path, beam=4, batches=fewer) == EXPECTED[2:] and log(tmp_path) == [3, 4, 7, 8]


def test_a_half_written_part_is_none(tmp_path):
    run(tmp_path)
    log(tmp_path)
    (part,) = (tmp_path / "parts").glob("*/2.json")
    part.rename(part.with_name(".2.json.x.json"))
    assert run(tmp_path) == EXPECTED and log(tmp_path) == [4]


def test_a_process_killed_outright_is_resumed(tmp_path):
    script = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); import test_batch_jobs as t; from pathlib import Path\n"
        "def killed(settings):\n"
        "    work = t.squares(settings)\n"
        "    return lambda batch: os.kill(os.getpid(), 9) if batch[0] == 7 else work(batch)\n"
        "t.run(Path(sys.argv[2]), worker=killed)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path)])
    assert done.returncode == -9 and log(tmp_path) == [1, 3, 4]
    assert run(tmp_path) == EXPECTED and log(tmp_path) == [8, 7]  # what it was killed of comes last, apart


def test_several_processes(tmp_path):
    with pytest.raises(UserError, match="the model is truncated: copy it again"):
        run(tmp_path, worker=broken, nj=2)
    with pytest.raises(UserError, match=r"a worker process crashed \(status 9\) before it began: "):
        run(tmp_path, worker=dying, nj=2)
    assert run(tmp_path, nj=2) == EXPECTED
    assert sorted(log(tmp_path)) == [1, 3, 4, 7, 8]
    assert run(tmp_path) == EXPECTED and log(tmp_path) == []  # the number of processes is no setting


def dying_of_5(settings):
    def work(batch):
        if 5 in batch:
            os.kill(os.getpid(), 11)
        return squares(settings)(batch)

    return work


def left_out(item, reason):
    return [item, reason]


def test_a_crash_is_one_item_s(tmp_path, capfd):
    """Also where this process itself died of it: the next run does what it had in hand in another."""
    found = run(tmp_path, worker=dying_of_5, nj=2, crashed=left_out)
    assert found.pop(4) == [5, "the process that worked on it crashed (SIGSEGV): look at this input, or leave it out"]
    assert found == [pair for pair in EXPECTED if pair[0] != 5]
    batch_jobs.finish(tmp_path / "parts")
    with pytest.raises(UserError, match=r"^5: the process that worked on it crashed \(SIGSEGV\)"):
        run(tmp_path, worker=dying_of_5, nj=2)
    batch_jobs.finish(tmp_path / "parts")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_batch_jobs as t; from pathlib import Path\n"
        "if __name__ == '__main__':\n"
        "    t.run(Path(sys.argv[2]), worker=t.dying_of_5)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path)]).returncode == -11
    log(tmp_path)
    assert "crashed (SIGSEGV)" in run(tmp_path, worker=dying_of_5, crashed=left_out)[4][1]
    assert sorted(log(tmp_path)) == [4, 6, 7, 8]


def test_the_processes_end_with_a_parent_that_is_killed(tmp_path):
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_batch_jobs as t; from pathlib import Path\n"
        "if __name__ == '__main__':\n"
        "    t.run(Path(sys.argv[2]), worker=t.endless, nj=2)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path)])
    path = tmp_path / "log"
    wait_for(lambda: path.exists() and len(path.read_text("utf-8").splitlines()) == 2)
    workers = [int(line) for line in path.read_text("utf-8").splitlines()]
    parent.kill()
    parent.wait()
    wait_for(lambda: not any(is_running(worker) for worker in workers))


def wait_for(reached, seconds=60):
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "not reached in time"
        time.sleep(0.1)


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_shards_are_put_together_without_working_again(tmp_path):
    assert run(tmp_path, shard=(2, 3)) == [] and log(tmp_path) == [3, 8]
    assert run(tmp_path, shard=(1, 3)) == [] and log(tmp_path) == [1, 7]
    assert run(tmp_path, shard=(1, 3)) == [] and log(tmp_path) == []
    run(tmp_path, shard=(1, 3), beam=4)  # of another task: beside them
    log(tmp_path)
    assert run(tmp_path) == EXPECTED and log(tmp_path) == [4]  # the third shard was never done
    assert len(list((tmp_path / "parts").iterdir())) == 1
    assert run(tmp_path, shard=(9, 9), batches=BATCHES) == [] and log(tmp_path) == []


def test_batches_by_length():
    lengths = {"a": 30, "b": 10, "c": 20, "d": 10, "e": 5}
    assert batch_jobs.batches_by_length(lengths, 2) == [["e", "b"], ["d", "c"], ["a"]]
    assert batch_jobs.batches_by_length({}, 2) == []
    long = {"a": 10, "b": 30, "c": 20, "d": 31, "e": 100}
    assert batch_jobs.batches_by_length(long, 3, most_samples=60) == [["a", "c"], ["b"], ["d"], ["e"]]
    assert batch_jobs.batches_by_length(long, 3, most_samples=62) == [["a", "c"], ["b", "d"], ["e"]]
    with pytest.raises(UserError, match="batch size 0: give at least 1"):
        batch_jobs.batches_by_length(lengths, 0)


def test_what_memory_does_not_hold_at_once_is_done_one_by_one():
    calls = []

    def double(items):
        calls.append(items)
        if sum(items) > 5:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return [2 * item for item in items]

    assert batch_jobs.as_memory_allows(double, [1, 2]) == [(2, None), (4, None)]
    pairs = batch_jobs.as_memory_allows(double, [3, 9, 4])
    assert [result for result, _ in pairs] == [6, None, 8] and pairs[1][1].startswith("memory does not hold it: cut it")
    assert calls[1:] == [[3, 9, 4], [3], [9], [4]]
    with pytest.raises(RuntimeError, match="something else"):
        batch_jobs.as_memory_allows(lambda items: (_ for _ in ()).throw(RuntimeError("something else")), [1])

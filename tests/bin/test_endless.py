"""The command that runs a stream for hours, for a few loops; its verdicts on planted measurements."""

import numpy as np
import pytest
import soundfile
import tiny

from espnet_speechllm_xl.bin import cli
from espnet_speechllm_xl.bin.endless import report
from espnet_speechllm_xl.sets import endless
from espnet_speechllm_xl.sets.endless import Hour


@pytest.fixture
def files(tmp_path):
    paths = []
    for seed, samples in enumerate([20000, 31000]):
        soundfile.write(tmp_path / f"{seed}.wav", tiny.speech(seed, samples), 16000)
        paths.append(str(tmp_path / f"{seed}.wav"))
    return paths


def test_a_short_run(capsys, monkeypatch, tiny_model_dir, files):
    monkeypatch.setattr(endless, "MEMORY_PERCENT", 3.0)  # seconds, not hours: allocators have not come to rest
    options = ["--hours", "0.05", "--silence", "3", "--pause", "0.5", "--search", "greedy"]
    code = cli.main(["endless", *files, "--model", str(tiny_model_dir), *options])
    out, err = capsys.readouterr()
    row = [cell.strip() for cell in out.splitlines()[2].strip("|").split("|")]
    loops, words, changed = map(int, row[1:4])
    seconds = 7.68  # 51000 samples, two pauses, silence; rounded up to chunks of 0.64 s
    assert loops == round(180 / seconds) and words >= loops and "loop of 0.1 minutes, 2 files" in err
    # An untrained model writes in silence too: words that go on from one loop to the next tell the first loop apart.
    assert changed <= 1 and code == changed and f"{changed} loops changed their words" in out


def test_the_loop_is_whole_chunks():
    first, second = np.ones(8000, np.float32), np.full(100, 2, np.float32)
    loop = np.concatenate(endless.make_loop([first, second], 16, 16000, 0.5, 1.0))
    assert len(loop) == 4 * 10240  # of 40100 samples
    assert (loop[8000:16000] == 1).all() and (loop[24000:24100] == 2).all()
    assert not loop[:8000].any() and not loop[16000:24000].any() and not loop[24100:].any()


@pytest.mark.parametrize(
    "second, code",
    [
        (Hour([0.0104] * 3, [1009, 1001], 50, 5, 0), 0),
        (Hour([0.0106] * 3, [1001], 50, 5, 0), 1),  # slower
        (Hour([0.01] * 3, [1011], 50, 5, 0), 1),  # larger
        (Hour([0.01] * 3, [1000], 50, 5, 1), 1),  # another text
    ],
)
def test_verdicts(capsys, second, code):
    assert report([Hour([0.01, 0.01, 0.5], [1000, 1000], 50, 5, 0), second]) == code
    assert capsys.readouterr().out.count("\n| ") == 2


def judged(rss):
    """The verdict on hours of such memory, in MB a loop."""
    return report([Hour([0.01], [round(value * 1e6) for value in hour], 50, len(hour), 0) for hour in rss])


def test_memory_that_rises_and_falls_again_has_no_trend(capsys):
    assert judged([[1147.8], [1165.0], [1135.8], [1133.8]]) == 0
    assert "RSS -1.40 %" in capsys.readouterr().out
    rng = np.random.default_rng(0)
    assert judged(1140 + 20 * rng.standard_normal((10, 30))) == 0
    assert judged([*[[1000.0] * 20] * 4, [1000.0, *[1300.0] * 5, *[1000.0] * 14], *[[1000.0] * 20] * 4]) == 0


def test_a_slow_leak_is_found_in_noise(capsys):
    rng = np.random.default_rng(1)
    leak = np.linspace(0, 25, 300).reshape(10, 30)  # 2.5 MB an hour
    assert judged(1140 + 20 * rng.standard_normal((10, 30)) + leak) == 1
    assert judged([[1000.0], [1000.0], [1040.0], [1080.0]]) == 1


def test_trends_of_any_number_of_values():
    assert endless.growth([]) == endless.growth([7]) == 0
    assert endless.growth([10, 11]) == pytest.approx(1 / 10.5)
    many = np.linspace(100, 110, 20_000)  # more pairs than are looked at
    assert endless.growth(many) == pytest.approx(10 / 105)


@pytest.mark.parametrize("option", ["--hours=nan", "--hours=inf", "--hours=0", "--pause=-1", "--silence=-2"])
def test_what_is_no_duration_is_refused(capsys, tiny_model_dir, files, option):
    with pytest.raises(SystemExit) as caught:
        cli.main(["endless", *files, "--model", str(tiny_model_dir), option])
    assert caught.value.code == 2 and "is no duration above 0" in capsys.readouterr().err


def test_an_infinite_window_is_refused(capsys, tiny_model_dir, files):
    for options in (["--context", "inf"], ["--chunk-size", "inf"]):
        assert cli.main(["endless", *files, "--model", str(tiny_model_dir), *options]) == 2
        assert "an infinite chunk or context has no end to its memory" in capsys.readouterr().err

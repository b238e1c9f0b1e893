"""The LibriSpeech recipe, all stages, on real recordings in LibriSpeech's own layout, with a micro model."""

import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from espnet_speechllm_xl.corpus.kaldi import read_table

ROOT = Path(__file__).resolve().parents[2]
PACK = Path(os.environ.get("SPEECHLLM_XL_DATA") or ROOT.parent / "shared" / "data") / "ljspeech_subset"
RECIPE = Path("egs2/librispeech/speechllm_xl1")
SIZES = {"train-clean-100": 16, "dev-clean": 3, "dev-other": 3, "test-clean": 4, "test-other": 4}
MICRO = ROOT / "tests/conf"

pytestmark = pytest.mark.skipif(not PACK.is_dir(), reason="needs the recordings of ljspeech_subset")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """``LibriSpeech/<part>/<reader>/<chapter>/`` of clips of LJ Speech; one reader a part."""
    folder = tmp_path_factory.mktemp("corpus")
    text = read_table(PACK / "data/all/text")
    clips = iter(sorted(text))
    with tarfile.open(PACK / "ljspeech_subset.tar") as tar:
        for reader, (part, size) in enumerate(SIZES.items(), 1001):
            lines = []
            for number in range(size):
                clip, name = next(clips), f"{reader}-12-{number:04d}"
                target = folder / "LibriSpeech" / part / str(reader) / "12" / f"{name}.flac"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(tar.extractfile(f"audio/{clip}.flac").read())
                lines.append(f"{name} {text[clip]}\n")
            (target.parent / f"{reader}-12.trans.txt").write_text("".join(lines))
    return folder


def test_all_stages(tree, tmp_path):
    recipe = tmp_path / RECIPE
    shutil.copytree(ROOT / RECIPE, recipe)
    (tmp_path / "egs2/TEMPLATE").symlink_to(ROOT / "egs2/TEMPLATE")  # the driver follows it to the repository
    data = ["--downloads", tree, "--data-opts", "--train 100", "--train-set", "train_100", "--nj", "1",
            "--test-sets", "test_clean test_other", "--vocab-size", "80"]  # fmt: skip

    def run(*command):
        done = subprocess.run(
            command, cwd=recipe, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done

    done = run(
        "./run.sh", *data, "--searches", "alsd", "--beam-size", "2", "--longform-factors", "2",
        "--aligner-vocab-size", "60",
        "--train-config", MICRO / "train_micro.yaml", "--aligner-config", MICRO / "train_aligner_micro.yaml",
        "--train-args", "--max_epoch 1", "--aligner-args", "--max_epoch 1",
    )  # fmt: skip
    assert "note: train-clean-100 has 16 utterances, the official one 28539" in done.stdout
    assert len(read_table(recipe / "dump/raw/train_100_sp/text")) == 3 * 16
    assert len(read_table(recipe / "dump/raw/dev/text")) == 6  # clean and other, for validation
    assert (recipe / "exp/speechllm_xl_micro_unigram80.zip").is_file()
    rows = re.findall(r"^\|decode_(\w+)/(\w+)\|(\d+)\|", (recipe / "exp/RESULTS.md").read_text(), re.M)
    found = {(search, name): int(count) for search, name, count in rows}
    expected = {"dev": 6, "test_clean": 4, "test_other": 4, "test_clean_2x": 2, "test_other_2x": 2}
    assert found == {("alsd", name): count for name, count in expected.items()}

    run(
        "./run.sh", "--system", "espnet_ctc", *data, "--train-config", MICRO / "train_asr_ctc_micro.yaml",
        "--searches", "greedy", "--train-args", "--max_epoch 1",
    )  # fmt: skip
    assert not (recipe / "RESULTS.md").exists()
    text = (recipe / "exp/RESULTS.md").read_text()
    for name in ("dev", "test_clean", "test_other"):
        assert f"|decode_greedy/{name}|{expected[name]}|" in text  # the same sets, in the same results

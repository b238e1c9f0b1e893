"""What a recipe would do: its script at work with a stand-in for Python that writes down every call."""

import itertools
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Leaves behind what later stages look for: sets, tokens, alignments, weights.
PYTHON = r"""#!/usr/bin/env bash
set -eu
{ printf '%q ' "$@"; echo; } >>"$CALLS"
args=" $* " out=''
[[ ! $args =~ \ --(dump|out|output_dir)\ ([^ ]+) ]] || out=${BASH_REMATCH[2]}
[[ ! $args =~ \ --(out|output_dir)\ ([^ ]+) ]] || out=${BASH_REMATCH[2]}
case $args in
  *" tokens "*) mkdir -p "$out"; echo "$out" >"$out/tokenizer.model"; echo a >"$out/tokens.txt" ;;
  *" format "* | *" align "*)
    mkdir -p "$out"
    for file in wav.scp text text_spoken utt2spk utt2num_samples char_ends; do echo "a 1" >"$out/$file"; done
    ;;
  *" --collect_stats "*) mkdir -p "$out" ;;
  *asr_train.py* | *" train "* | *" train-aligner "*) touch "$out/valid.ter.ave.pth" "$out/config.yaml" ;;
esac
"""


class Listed:
    """A copy of a recipe whose script calls the stand-in.

    Args:
        corpus: the recipe is ``egs2/<corpus>/speechllm_xl1``.
        folder: where the copy goes.
        root: the repository.
    """

    def __init__(self, corpus: str, folder: Path, root: Path = ROOT) -> None:
        recipe = Path("egs2") / corpus / "speechllm_xl1"
        self.folder, self.recipe = folder, folder / recipe
        made = shutil.ignore_patterns("exp", "dump", "data", "downloads")
        for part in (Path("egs2/TEMPLATE"), Path("local"), Path("conf"), recipe):
            shutil.copytree(root / part, folder / part, ignore=made)
        (folder / "local/install.sh").write_text("#!/bin/sh\n")
        path = 'SPEECHLLM_XL_ROOT=$(dirname "$(dirname "${BASH_SOURCE[0]}")") PYTHONPATH=""\n'
        (folder / "local/path.sh").write_text(path)
        (folder / "bin").mkdir()
        (folder / "bin/python3").write_text(PYTHON)
        (folder / "bin/python3").chmod(0o755)

    def run(self, *options: str, script: str = "run.sh") -> list[list[str]]:
        """Return the arguments of each call of Python by the recipe's ``script`` with these ``options``."""
        calls = self.folder / "calls"
        calls.write_text("")
        environment = {**os.environ, "PATH": f"{self.folder}/bin:{os.environ['PATH']}", "CALLS": str(calls)}
        command = [self.recipe / script, *options]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr
        return [shlex.split(line.replace(f"{self.folder}/", "")) for line in calls.read_text().splitlines()]


def summary(calls: list[list[str]]) -> list[str]:
    """Return a line for each training, and for each search with the sets that it decodes: files and what is special."""
    lines, decoded = [], {}
    for call in calls:
        values = dict(itertools.pairwise(call))
        if "--valid_shape_file" in call:
            command = next(word for word in call if re.match(r"train|.*asr_train", word))
            tokens = Path(values.get("--tokenizer") or values["--bpemodel"])
            special = call[len(call) - call[::-1].index("--valid_shape_file") + 1 :]
            lines.append(" ".join([command, values["--config"], str(tokens), "->", values["--output_dir"], *special]))
        elif "decode" in call:
            out, name = values["--out"].rsplit("/", 1)
            decoded.setdefault(f"decode {values['--search']} {values['--ctc-weight']} -> {out}", []).append(name)
        elif "--asr_train_config" in call:
            out, name = values["--output_dir"].split("/.parts")[0].rsplit("/", 1)
            decoded.setdefault(f"{call[1]} {values['--config']} -> {out}", []).append(name)
    return lines + [f"{line}: {' '.join(dict.fromkeys(names))}" for line, names in decoded.items()]

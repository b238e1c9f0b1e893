"""LJSpeech (keithito.com/LJ-Speech-Dataset, public domain) as Kaldi directories.

    python3 local/data.py --downloads DIR

DIR (default: ``$SPEECHLLM_XL_DATA``, else ``downloads``) holds LJSpeech-1.1 as it is distributed, or ljspeech_subset,
325 clips of its first two chapters.  ``text`` is what is written, ``text_spoken`` how it is read ("In 1813" and
"in eighteen thirteen").  The subset has what is read only: put the ``metadata.csv`` of LJSpeech-1.1 into its folder, or
give ``--text plain`` to run.sh.  Clips are pieces of running text.
The sets are parts of it: dev and test are the end of the first and of the second chapter of the subset, or the last two
of the fifty chapters.
"""

import argparse
import os
import sys
from pathlib import Path

from espnet_speechllm_xl.bin import guard
from espnet_speechllm_xl.corpus.downloads import extract
from espnet_speechllm_xl.corpus.kaldi import read_table, spk2utt, write_table
from espnet_speechllm_xl.errors import UserError

SOURCE = "https://keithito.com/LJ-Speech-Dataset"
RELEASE, SUBSET = "LJSpeech-1.1", "ljspeech_subset"
# From the first of two clips to the one before the second.
DEV = {RELEASE: ("LJ049", "LJ050"), SUBSET: ("LJ001-0160", "LJ002")}
TEST = {RELEASE: ("LJ050", "LJ051"), SUBSET: ("LJ002-0150", "LJ003")}


def read_release(folder: Path) -> dict[str, dict[str, str]]:
    """Return ``wav.scp``, ``text`` and ``text_spoken`` of LJSpeech-1.1, of the clips that are there."""
    written, spoken = read_metadata(folder)
    wavs = {clip: (folder / "wavs" / f"{clip}.wav").resolve() for clip in written}
    files = {clip: str(wav) for clip, wav in wavs.items() if wav.is_file()}
    return {"wav.scp": files, "text": written, "text_spoken": spoken}


def read_metadata(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return what is written, and how it is read, of all clips that ``metadata.csv`` names."""
    rows = [line.split("|") for line in (folder / "metadata.csv").read_text(encoding="utf-8").splitlines()]
    if bad := next((number for number, row in enumerate(rows, 1) if len(row) != 3), None):
        raise UserError(f"{folder}/metadata.csv, line {bad}: not a clip and two texts: get it from {SOURCE}")
    return {clip: text for clip, text, _ in rows}, {clip: text for clip, _, text in rows}


def read_subset(folder: Path, out: Path) -> dict[str, dict[str, str]]:
    """Return the same of the subset, whose archive is extracted to ``out``."""
    audio = (out / SUBSET).resolve()
    if not audio.is_dir():
        extract(folder / f"{SUBSET}.tar", "audio", audio, SOURCE)
    spoken = read_table(folder / "data/all/text")
    files = {clip: str(audio / f"{clip}.flac") for clip in spoken}
    if not (folder / "metadata.csv").is_file():
        print(f"{folder} has no metadata.csv, which holds what is written: the text is what is read")
        return {"wav.scp": files, "text": spoken}
    written, _ = read_metadata(folder)
    if lacking := sorted(spoken.keys() - written.keys()):
        raise UserError(f"{folder}/metadata.csv lacks {len(lacking)} clips, first {lacking[0]}: get it from {SOURCE}")
    return {"wav.scp": files, "text": written, "text_spoken": spoken}


def build(downloads: Path, out: Path) -> None:
    """Write all sets; print what they hold."""
    if (downloads / RELEASE / "metadata.csv").is_file():
        kind, tables = RELEASE, read_release(downloads / RELEASE)
    elif (downloads / SUBSET / f"{SUBSET}.tar").is_file():
        kind, tables = SUBSET, read_subset(downloads / SUBSET, out)
    else:
        raise UserError(f"{downloads} holds neither {RELEASE}/metadata.csv nor {SUBSET}/: get {RELEASE} from {SOURCE}")
    sets: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    for clip in sorted(tables["wav.scp"]):
        parts = {"dev": DEV[kind], "test": TEST[kind]}
        found = [name for name, (first, after) in parts.items() if first <= clip < after]
        sets[found[0] if found else "train"].append(clip)
    for name, clips in sets.items():
        if not clips:
            raise UserError(f"{downloads / kind} holds no clips of the {name} set: get all of it again from {SOURCE}")
        for table, rows in tables.items():
            write_table(out / name / table, {clip: rows[clip] for clip in clips})
        write_table(out / name / "utt2spk", dict.fromkeys(clips, "LJ"))
        write_table(out / name / "spk2utt", spk2utt(dict.fromkeys(clips, "LJ")))
        print(f"{out / name}: {len(clips)} utterances of 1 speaker")


def main(argv: list[str] | None = None) -> int:
    """Return 0, or 1 (2: a full disk, no permission) with one line on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    pack = Path(os.environ.get("SPEECHLLM_XL_DATA") or "downloads")
    parser.add_argument("--downloads", type=Path, default=pack, help=f"holds {RELEASE} or {SUBSET}")
    parser.add_argument("--out", type=Path, default=Path("data"), help="where the Kaldi directories go")
    args = parser.parse_args(argv)
    return guard.run(lambda: build(args.downloads, args.out), "ljspeech data", bad_input=1)


if __name__ == "__main__":
    sys.exit(main())

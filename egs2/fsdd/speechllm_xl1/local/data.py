"""FSDD (github.com/Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0) as Kaldi directories.

    python3 local/data.py --downloads DIR

DIR (default: ``$SPEECHLLM_XL_DATA``, else ``downloads``) is a clone of that repository, with ``recordings/``, or holds
fsdd.tar, or a directory fsdd that does.  The file name says it all: ``7_jackson_32`` is a seven by jackson, take 32.
Takes 0 to 4 are the test set, as the data set's authors have it; of the others 5 to 9 become dev.
"""

import argparse
import os
import sys
from pathlib import Path

from espnet_speechllm_xl.bin import guard
from espnet_speechllm_xl.corpus.downloads import extract
from espnet_speechllm_xl.corpus.kaldi import spk2utt, write_table
from espnet_speechllm_xl.errors import UserError

WORDS = "zero one two three four five six seven eight nine".split()
SOURCE = "https://github.com/Jakobovski/free-spoken-digit-dataset"


def find_recordings(downloads: Path, out: Path) -> list[Path]:
    """Return the audio files of a clone, or of fsdd.tar, which is extracted to ``out``; raise UserError for none."""
    if (downloads / "fsdd").is_dir():
        downloads = downloads / "fsdd"
    folder = downloads / "recordings"
    if not folder.is_dir():
        folder = out / "fsdd"
        if not folder.is_dir():
            if not (downloads / "fsdd.tar").is_file():
                raise UserError(f"{downloads} holds neither recordings/ nor fsdd.tar: git clone {SOURCE} {downloads}")
            extract(downloads / "fsdd.tar", "audio", folder, SOURCE)
    files = sorted(path.resolve() for path in folder.iterdir() if path.suffix in (".wav", ".flac"))
    if not files:
        raise UserError(f"{folder} holds no recordings: remove it and get {SOURCE} again")
    return files


def set_of(take: int) -> str:
    """Return the name of the set that a take belongs to."""
    if take < 5:
        return "test"
    return "dev" if take < 10 else "train"


def build(files: list[Path], out: Path, digits: int) -> None:
    """Write all sets of the first so many ``digits``; print what they hold."""
    sets: dict[str, dict[str, dict]] = {}
    for file in files:
        digit, speaker, take = file.stem.split("_")
        if int(digit) < digits:
            tables = sets.setdefault(set_of(int(take)), {"wav.scp": {}, "text": {}, "utt2spk": {}})
            utterance = f"{speaker}-{digit}-{int(take):02d}"  # the speaker first: Kaldi sorts by speaker
            tables["wav.scp"][utterance] = file
            tables["text"][utterance] = WORDS[int(digit)]
            tables["utt2spk"][utterance] = speaker
    for name, tables in sets.items():
        tables["spk2utt"] = spk2utt(tables["utt2spk"])
        for table, entries in tables.items():
            write_table(out / name / table, entries)
        print(f"{out / name}: {len(tables['text'])} utterances of {len(tables['spk2utt'])} speakers")


def main(argv: list[str] | None = None) -> int:
    """Return 0, or 1 (2: a full disk, no permission) with one line on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    pack = Path(os.environ.get("SPEECHLLM_XL_DATA") or "downloads")
    parser.add_argument("--downloads", type=Path, default=pack, help="a clone of the repository, or holds fsdd.tar")
    parser.add_argument("--out", type=Path, default=Path("data"), help="where the Kaldi directories go")
    parser.add_argument("--digits", type=int, default=10, help="only so many of them, from zero on, to try it out")
    args = parser.parse_args(argv)
    return guard.run(
        lambda: build(find_recordings(args.downloads, args.out), args.out, args.digits), "fsdd data", bad_input=1
    )


if __name__ == "__main__":
    sys.exit(main())

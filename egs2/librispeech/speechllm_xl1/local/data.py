"""LibriSpeech (Panayotov et al. 2015, openslr.org/12) as Kaldi directories.

A part is a tree ``LibriSpeech/<part>/<reader>/<chapter>/`` of ``<reader>-<chapter>-<number>.flac`` and one
``<reader>-<chapter>.trans.txt``.  The speaker is the reader.  ``dev`` is both development sets together.
"""

import argparse
import sys
from pathlib import Path

from espnet_speechllm_xl.bin import guard
from espnet_speechllm_xl.corpus.downloads import extract, fetch
from espnet_speechllm_xl.corpus.kaldi import spk2utt, write_table
from espnet_speechllm_xl.errors import UserError

URL = "https://www.openslr.org/resources/12"
# Utterances of the official parts.
PARTS = {
    "train-clean-100": 28539,
    "train-clean-360": 104014,
    "train-other-500": 148688,
    "dev-clean": 2703,
    "dev-other": 2864,
    "test-clean": 2620,
    "test-other": 2939,
}
SETS = {
    "dev": ("dev-clean", "dev-other"),
    **{part.replace("-", "_"): (part,) for part in ("dev-clean", "dev-other", "test-clean", "test-other")},
}
TRAIN = {"100": ("train-clean-100",), "960": ("train-clean-100", "train-clean-360", "train-other-500")}


def locate(part, downloads, work):
    """The directory of a part; extracts or fetches its archive when needed."""
    places = [work] if downloads is None else [downloads, work]
    for place in places:
        for directory in (place / "LibriSpeech" / part, place / part):
            if directory.is_dir():
                return directory
    for place in places:
        archive = place / f"{part}.tar.gz"
        if archive.is_file():
            break
    else:
        if downloads is not None:
            raise UserError(
                f"{downloads} holds neither LibriSpeech/{part} nor {part}.tar.gz: leave out --downloads to fetch it"
            )
        fetch(f"{URL}/{part}.tar.gz", archive)
    extract(archive, f"LibriSpeech/{part}", work / "LibriSpeech" / part, URL)
    return work / "LibriSpeech" / part


def read_part(directory):
    """``(wav.scp, text, utt2spk)`` of a part; raises UserError where texts and files are not those of one another."""
    wav_scp, text, utt2spk = {}, {}, {}
    for file in sorted(directory.glob("*/*/*.trans.txt")):
        files = {path.stem: path for path in file.parent.glob("*.flac")}
        texts = dict(line.split(" ", 1) for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
        for name in sorted(files.keys() ^ texts.keys()):
            raise UserError(
                f"{file.parent}: {name} lacks its audio or its text: the part is incomplete; extract it again"
            )
        wav_scp.update({name: path.resolve() for name, path in files.items()})
        text.update(texts)
        utt2spk.update(dict.fromkeys(texts, file.parent.parent.name))
    if not text:
        raise UserError(f"{directory} holds no <reader>/<chapter>/*.trans.txt: it is no part of LibriSpeech")
    return wav_scp, text, utt2spk


def write_set(out, parts):
    """One Kaldi directory of several parts ``{name: (wav.scp, text, utt2spk)}``; prints what it holds."""
    wav_scp, text, utt2spk = (
        {key: value for part in parts.values() for key, value in part[i].items()} for i in range(3)
    )
    for name, table in (("wav.scp", wav_scp), ("text", text), ("utt2spk", utt2spk), ("spk2utt", spk2utt(utt2spk))):
        write_table(out / name, table)
    print(f"{out}: {len(text)} utterances of {len(set(utt2spk.values()))} readers")


def build(downloads, work, out, train):
    """Write all sets; parts of another size than the official are said, not refused."""
    wanted = [*TRAIN[train], *SETS["dev"], "test-clean", "test-other"]
    parts = {part: read_part(locate(part, downloads, work)) for part in wanted}
    for part, tables in parts.items():
        if len(tables[0]) != PARTS[part]:
            print(f"note: {part} has {len(tables[0])} utterances, the official one {PARTS[part]}")
    for name, names in {f"train_{train}": TRAIN[train], **SETS}.items():
        write_set(out / name, {part: parts[part] for part in names})


def main(argv=None):
    """Command line.  Returns 0, or 1 (2: a full disk, no permission) with one line on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--downloads", type=Path, help="holds LibriSpeech/<part> or <part>.tar.gz; default: fetched")
    parser.add_argument("--train", choices=sorted(TRAIN), default="960", help="hours (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("data"), help="where the Kaldi directories go")
    parser.add_argument("--work", type=Path, default=Path("downloads"), help="where archives are kept and extracted")
    args = parser.parse_args(argv)
    return guard.run(lambda: build(args.downloads, args.work, args.out, args.train), "librispeech data", bad_input=1)


if __name__ == "__main__":
    sys.exit(main())

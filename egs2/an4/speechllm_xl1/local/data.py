"""AN4 as Kaldi directories, with ESPnet's splits: train_nodev 848, train_dev 100, test 130 utterances.

The archive is sought in ``--downloads``; without that option in ``$SPEECHLLM_XL_DATA/an4`` where the variable is set,
else in ``downloads/``, into which it is fetched from its public address when it is not there.

The archive names an utterance ``an251-fash-b``; Kaldi wants the speaker first: ``fash-an251-b``.  train_dev is
the first 100 of the sorted train utterances, train_nodev the rest.
"""

import argparse
import os
import re
import sys
from pathlib import Path

from espnet_speechllm_xl.bin import guard
from espnet_speechllm_xl.corpus.directories import subset_dir
from espnet_speechllm_xl.corpus.downloads import extract, fetch
from espnet_speechllm_xl.corpus.kaldi import KaldiError, spk2utt, write_table

URL = "http://www.speech.cs.cmu.edu/databases/an4/an4_sphere.tar.gz"
ARCHIVE = "an4_sphere.tar.gz"
DEV_UTTERANCES = 100
# Utterances and words of the official archive.
EXPECTED = {"train_nodev": (848, 4851), "train_dev": (100, 591), "test": (130, 773)}
MARK = re.compile(r"<[^>]*>|\[[^\]]*\]|\+\+.*\+\+")  # <s>, </s>, <sil>, [noise], ++NOISE++


def locate(downloads, work):
    """The directory ``an4`` of the extracted corpus; extracts or fetches the archive when needed."""
    pack = os.environ.get("SPEECHLLM_XL_DATA")
    if downloads is None and pack and (Path(pack) / "an4").is_dir():
        downloads = Path(pack) / "an4"
    if downloads is not None:
        downloads = Path(downloads).resolve()
        for place in (downloads / "an4", downloads):
            if (place / "etc" / "an4_train.transcription").is_file():
                return place
        archive = downloads / ARCHIVE
        if not archive.is_file():
            raise KaldiError(f"{downloads} holds neither {ARCHIVE} nor an4/: pass --downloads DIR with one of them")
    elif not (work / "an4").is_dir():
        archive = work / ARCHIVE
        if not archive.is_file():
            fetch(URL, archive)
    if not (work / "an4").is_dir():
        extract(archive, "an4", work / "an4", URL)
    return work / "an4"


def read_lines(path):
    """Lines of a file of the corpus that are not blank."""
    if not path.is_file():
        raise KaldiError(f"{path} does not exist: the corpus is incomplete; get {URL} again")
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def parse_transcription(line):
    """``<s> GO </s> (an253-fash-b)`` -> ("an253-fash-b", "GO"): upper case, without silence and noise marks."""
    match = re.fullmatch(r"(.*)\(([^()\s]+)\)", line)
    if not match:
        raise KaldiError(f"transcription line '{line}' does not end in (utterance-id): the corpus is damaged")
    return match[2], " ".join(word for word in match[1].upper().split() if not MARK.fullmatch(word))


def kaldi_id(name):
    """``an253-fash-b`` -> (utterance ``fash-an253-b``, speaker ``fash``)."""
    parts = name.split("-")
    if len(parts) != 3:
        raise KaldiError(f"utterance '{name}' is not named <sentence>-<speaker>-<b>: this is not AN4")
    return f"{parts[1]}-{parts[0]}-{parts[2]}", parts[1]


def prepare(corpus, part, out):
    """Write the Kaldi directory of ``part`` (train, test).  Every transcription must have its file and vice versa."""
    files = {Path(name).name: name for name in read_lines(corpus / "etc" / f"an4_{part}.fileids")}
    texts = dict(map(parse_transcription, read_lines(corpus / "etc" / f"an4_{part}.transcription")))
    for name in sorted(files.keys() ^ texts.keys()):
        raise KaldiError(f"{corpus}/etc: '{name}' is in only one of an4_{part}.fileids and .transcription")
    wav_scp, text, utt2spk = {}, {}, {}
    for name, words in texts.items():
        utterance, speaker = kaldi_id(name)
        audio = corpus / "wav" / f"{files[name]}.sph"
        if not audio.is_file():
            raise KaldiError(f"{audio} does not exist: the corpus is incomplete; get {URL} again")
        wav_scp[utterance], text[utterance], utt2spk[utterance] = audio, words, speaker
    out.mkdir(parents=True, exist_ok=True)
    for name, table in (("wav.scp", wav_scp), ("text", text), ("utt2spk", utt2spk), ("spk2utt", spk2utt(utt2spk))):
        write_table(out / name, table)


def count(directory):
    """(utterances, words) of a Kaldi directory."""
    lines = read_lines(directory / "text")
    return len(lines), sum(len(line.split()) - 1 for line in lines)


def build(corpus, out, dev=DEV_UTTERANCES, any_size=False):
    """Make test and train, and from train the sets train_dev and train_nodev; compare sizes with the official ones."""
    prepare(corpus, "train", out / "train")
    prepare(corpus, "test", out / "test")
    total = count(out / "train")[0]
    if not 0 < dev < total:
        raise KaldiError(f"{corpus} has {total} train utterances, of which {dev} cannot be set apart for train_dev")
    subset_dir(out / "train", out / "train_dev", first=dev)
    subset_dir(out / "train", out / "train_nodev", last=total - dev)
    for name, expected in EXPECTED.items():
        found = count(out / name)
        print(f"{out / name}: {found[0]} utterances, {found[1]} words")
        if found != expected and not any_size:
            raise KaldiError(
                f"{out / name}: {found[0]} utterances with {found[1]} words, the official archive has {expected[0]} "
                f"with {expected[1]}: get {URL} again, or pass --any-size for another selection"
            )


def main(argv=None):
    """Command line.  Returns 0, or 1 (2: a full disk, no permission) with one line on stderr."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--downloads", help=f"directory that holds {ARCHIVE} or an extracted an4/")
    parser.add_argument("--out", type=Path, default=Path("data"), help="where the Kaldi directories go")
    parser.add_argument("--work", type=Path, default=Path("downloads"), help="where the archive is kept and extracted")
    parser.add_argument("--dev", type=int, default=DEV_UTTERANCES, help="utterances of train_dev")
    parser.add_argument("--any-size", action="store_true", help="accept an archive of another size")
    args = parser.parse_args(argv)
    return guard.run(
        lambda: build(locate(args.downloads, args.work), args.out, args.dev, args.any_size), "an4 data", bad_input=1
    )


if __name__ == "__main__":
    sys.exit(main())

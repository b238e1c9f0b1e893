"""Mboshi (Godard et al., LREC 2018) as Kaldi directories with reference word times, from the data pack.

    python3 local/data.py --downloads DIR --out DATA

DIR (default: ``$SPEECHLLM_XL_DATA``, else ``downloads``) holds mboshi.tar, data/ and ref_alignments/, or a directory
mboshi with them.

DATA gets ``train``, ``valid`` (sentences cut from the corpus's train by a hash, so that none is in both) and ``dev``
(the corpus's own, for reporting); the audio goes to ``DATA/mboshi``.  Word times:

    ref.ctm           words_train.tsv, 60 ms earlier, because that aligner is late by so much; not the start of the
                      first word, and not the utterances with a word of more than 1.5 s, whose alignment failed
    dev/ref.ctm       words_dev_limsi.tsv: a more accurate aligner, two thirds of the utterances
    dev/shifted.ctm   words_dev.tsv, mended as that of train; ends of last words are unreliable
"""

import argparse
import csv
import os
import sys
import zlib
from pathlib import Path

from espnet_speechllm_xl.bin import guard
from espnet_speechllm_xl.corpus.ctm import Word, write_ctm
from espnet_speechllm_xl.corpus.directories import subset_dir
from espnet_speechllm_xl.corpus.downloads import extract
from espnet_speechllm_xl.corpus.kaldi import read_table, spk2utt, write_table
from espnet_speechllm_xl.errors import UserError

LATE = 0.06  # seconds
LONGEST = 1.5  # seconds
VALID_SHARE = 20  # one sentence of so many


def read_words(path):
    """``{utterance: [Word]}`` of a table with the columns utt_id, start_s, end_s, word; raises UserError."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: give --downloads the directory with mboshi.tar and ref_alignments/")
    words = {}
    with open(path, encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE):
            words.setdefault(row["utt_id"], []).append(Word(row["word"], float(row["start_s"]), float(row["end_s"])))
    return words


def earlier(words, seconds):
    """The words ``seconds`` earlier, except the start of the first; none begins before the one before it."""
    starts = [words[0].start, *(word.start - seconds for word in words[1:])]
    starts = [min(start, word.end - seconds) for start, word in zip(starts, words, strict=True)]
    return [Word(word.text, start, word.end - seconds) for start, word in zip(starts, words, strict=True)]


def shifted(path):
    """Word times of a table, 60 ms earlier: ``{utterance: [Word]}`` without the failed alignments."""
    words = read_words(path)
    return {
        utterance: earlier(row, LATE)
        for utterance, row in words.items()
        if all(word.end - word.start <= LONGEST for word in row)
    }


def write_part(pack, part, audio, out):
    """One Kaldi directory with its CTM files; prints what it holds."""
    text, speakers, files = (read_table(pack / "data" / part / name) for name in ("text", "utt2spk", "audio.tsv"))
    wav_scp = {utterance: audio / name for utterance, name in files.items()}
    tables = {"wav.scp": wav_scp, "text": text, "utt2spk": speakers, "spk2utt": spk2utt(speakers)}
    for name, table in tables.items():
        write_table(out / name, table)
    times = {"ref.ctm": shifted(pack / "ref_alignments" / f"words_{part}.tsv")}
    if part == "dev":
        better = read_words(pack / "ref_alignments/words_dev_limsi.tsv")
        times = {"ref.ctm": better, "shifted.ctm": times["ref.ctm"]}
    counts = []
    for name, words in times.items():
        known = {utterance: words[utterance] for utterance in files if utterance in words}
        write_ctm(out / name, known)
        counts.append(f"{len(known)} in {name}")
    print(f"{out}: {len(files)} utterances, word times of {', '.join(counts)}")


def build(pack, out):
    """Write all directories."""
    audio = (out / "mboshi").resolve()
    if not (audio / "audio").is_dir():
        if not (pack / "mboshi.tar").is_file():
            raise UserError(f"{pack / 'mboshi.tar'} does not exist: give --downloads the directory that holds it")
        extract(pack / "mboshi.tar", "audio", audio / "audio", "its publisher")
    for part in ("train", "dev"):
        write_part(pack, part, audio, out / (part if part == "dev" else "all_train"))
    text = read_table(out / "all_train/text")
    valid = {utterance for utterance, words in text.items() if zlib.crc32(words.encode()) % VALID_SHARE == 0}
    for name, chosen in (("valid", valid), ("train", set(text) - valid)):
        subset_dir(out / "all_train", out / name, utterances=sorted(chosen))
        print(f"{out / name}: {len(chosen)} utterances")


def main(argv=None):
    """Command line.  Returns 0, or 1 (2: a full disk, no permission) with one line on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    pack = Path(os.environ.get("SPEECHLLM_XL_DATA") or "downloads")
    parser.add_argument("--downloads", type=Path, default=pack, help="holds mboshi.tar, data/ and ref_alignments/")
    parser.add_argument("--out", type=Path, default=Path("data"), help="where the Kaldi directories go")
    args = parser.parse_args(argv)
    inner = args.downloads / "mboshi"
    downloads = inner if inner.is_dir() else args.downloads
    return guard.run(lambda: build(downloads, args.out), "mboshi data", bad_input=1)


if __name__ == "__main__":
    sys.exit(main())

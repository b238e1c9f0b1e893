"""Make the mini_mandarin corpus: Kaldi data directories of text without spaces.

    python3 local/data.py --out data --size small --seed 1

``text`` is as people write it ("3月5日天气很好。"), ``text_spoken`` as it is read (三月五日天气很好).  The audio lies
in ``OUT/local/audio``.  The result depends on ``--size`` and ``--seed`` alone.
"""

import argparse
import random
import re
import sys
from pathlib import Path

import numpy as np
import soxr

from espnet_speechllm_xl.bin import guard
from espnet_speechllm_xl.corpus.audio import write_flac
from espnet_speechllm_xl.corpus.kaldi import spk2utt, write_table
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.tokenization import plain_text

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "mini_espeak/speechllm_xl1/local"))  # its speech

SIZES = {"tiny": {"train": 24, "dev": 6, "test": 6}, "small": {"train": 1100, "dev": 80, "test": 160}}
# Numbers in braces are drawn; <symbol> is one of the texts below.
SENTENCES = [
    "{1-12}月{1-30}日<city>天气<weather>。", "<day>天气<weather>吗？", "我们<day>去<place>，好吗？",
    "<name>住在<city>，{1-99}号楼。", "<day>{1-12}点在<place>见面。", "请买{2-20}个<food>，还有{2-20}个<food>。",
    "从<city>到<city>的火车{1-12}点开。", "<letter>{1-9}号门在左边。", "<name>今年{18-80}岁。",
    "我的房间是<letter>座{1-40}号。", "<name>说：<day>天气<weather>。", "请给<name>打电话。",
]  # fmt: skip
SYMBOLS = {
    "city": ["北京", "上海", "广州", "西安"], "weather": ["很好", "很冷", "不好", "很热"],
    "place": ["公园", "学校", "医院", "图书馆", "车站"], "name": ["小明", "王先生", "李老师", "张小姐"],
    "food": ["苹果", "鸡蛋", "面包", "橘子"], "letter": ["A", "B", "D", "K"], "day": ["今天", "明天", "后天"],
}  # fmt: skip
DIGITS = "零一二三四五六七八九"


def read(number):
    """A number up to 99 as it is read: 21 is 二十一, 10 is 十."""
    tens, unit = divmod(int(number), 10)
    first = "" if not tens else "十" if tens == 1 else f"{DIGITS[tens]}十"
    return first + (DIGITS[unit] if unit or not tens else "")


def sentence(rng):
    """A sentence as it is written, and as it is read."""
    text = re.sub(r"<(\w+)>", lambda match: rng.choice(SYMBOLS[match[1]]), rng.choice(SENTENCES))
    text = re.sub(r"\{(\d+)-(\d+)\}", lambda match: str(rng.randint(int(match[1]), int(match[2]))), text)
    return text, plain_text(re.sub(r"\d+", lambda match: read(match[0]), text))


def speak(text, variant, rng):
    """int16 samples of a text at 16 kHz, with a little noise."""
    import synthesise

    voice = synthesise.Voice("cmn", variant)
    rate, audio, _ = synthesise.audio_of(text, voice, rng.randint(130, 180), rng.randint(40, 60))
    noise = np.random.default_rng(rng.randrange(2**31))
    audio = np.pad(soxr.resample(audio / 32768, rate, 16000), rng.randint(1600, 6400))
    audio = audio + noise.standard_normal(len(audio)) * np.sqrt(np.mean(audio**2)) * 10 ** (-rng.uniform(20, 40) / 20)
    return np.round(audio * 0.5 / np.max(np.abs(audio)) * 32767).astype(np.int16)


def build(out, size, seed):
    """Write all sets; a sentence is in one set only, and a voice in train or in the others."""
    import sentences
    import synthesise

    for name, count in SIZES[size].items():
        rng = random.Random(f"{name} {seed}")
        tables = {table: {} for table in ("wav.scp", "text", "text_spoken", "utt2spk")}
        variants = synthesise.VARIANTS[name][:2] if size == "tiny" else synthesise.VARIANTS[name]
        while len(tables["text"]) < count:
            text, spoken = sentence(rng)
            if sentences.set_of(text) != name:
                continue
            variant = variants[len(tables["text"]) % len(variants)]
            speaker = f"cmn_{variant or 'plain'}".lower()
            utterance = f"{speaker}-{name}{len(tables['text']):05d}"
            path = (out / "local/audio" / name / f"{utterance}.flac").resolve()
            write_flac(path, speak(spoken, variant, rng), 16000)
            for table, value in zip(tables, (path, text, spoken, speaker), strict=True):
                tables[table][utterance] = value
        for table, rows in {**tables, "spk2utt": spk2utt(tables["utt2spk"])}.items():
            write_table(out / name / table, rows)
        print(f"{out / name}: {count} utterances of {len(variants)} speakers")


def _make(options):
    try:
        build(options.out, options.size, options.seed)
    except (ImportError, RuntimeError) as error:  # no espeak-ng
        raise UserError(str(error)) from error


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="make the mini_mandarin corpus")
    parser.add_argument("--out", type=Path, default=Path("data"), help="data directory (default: data)")
    parser.add_argument("--size", choices=sorted(SIZES), default="small", help="24 or 1100 training utterances")
    parser.add_argument("--seed", type=int, default=1, help="default: 1")
    sys.exit(guard.run(lambda: _make(parser.parse_args()), "mini_mandarin data", bad_input=1))

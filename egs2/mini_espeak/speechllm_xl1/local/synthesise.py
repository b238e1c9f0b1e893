"""Speech with exact word times from espeak-ng, through ctypes on the library of PyPI's ``espeakng-loader``.

Word times.  espeak-ng reports a WORD event where a word begins and a PHONEME event where each phoneme
begins (pauses are phonemes whose mnemonic starts with ``_``), both with the exact sample.  A phoneme ends
where the next event begins, so *the end of a word is the sample of the first event of any kind after the
word's last sounding phoneme*: the next word, or the pause that follows.  A silent closure before a plosive
belongs to the plosive's word.  At the end of a sentence this agrees with the energy within a few
milliseconds (tests/recipes/test_mini_espeak.py), save for voices with an echo, which are not used here.

espeak-ng joins "in the", "on the" and "of the" into one WORD event; "the" then begins at the phoneme ``D``.

Determinism.  The library carries state from one sentence to the next (the phase of the pitch flutter) that
no call resets, not even espeak_Terminate, and seeds its noise with the time of day.  ``speak`` therefore loads
the library afresh for each sentence (half a millisecond) and sets the seed, so that its result depends on its
arguments alone.
"""

import _ctypes
import atexit
import ctypes
import os
import random
import shutil
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SAMPLE_RATE = 16000
MIN_SECONDS = 2.0
MAX_SECONDS = 16.0

ACCENTS = {
    "us": "gmw/en-US",
    "nyc": "gmw/en-US-nyc",
    "gb": "gmw/en",
    "rp": "gmw/en-GB-x-rp",
    "scot": "gmw/en-GB-scotland",
}
OTHERS = {"cmn": "sit/cmn"}  # of other corpora
# "" is the accent's own voice.  No voice of dev or test shares its variant with a voice of train.
VARIANTS = {
    "train": (
        "",
        "m1",
        "m5",
        "m7",
        "f1",
        "f3",
        "f5",
        "Alex",
        "Andrea",
        "Andy",
        "Annie",
        "Michael",
        "Mike",
        "Nguyen",
        "adam",
        "antonio",
        "edward",
        "linda",
        "max",
        "pedro",
        "quincy",
        "rob",
        "sandro",
    ),
    "dev": ("m4", "steph"),
    "test": ("m3", "m6", "f2", "Mario"),
}

_EVENT_END, _EVENT_WORD, _EVENT_PHONEME = 0, 1, 7
_OUTPUT_SYNCHRONOUS, _PHONEME_EVENTS, _DONT_EXIT, _UTF8 = 2, 0x0001, 0x8000, 1
_RATE, _VOLUME, _PITCH, _RANGE, _WORD_GAP = 1, 2, 3, 4, 7
# espeak-ng copies the path of its data into 160 bytes and silently falls back to a path that does not exist.
_LONGEST_DATA_PATH = 120


@dataclass(frozen=True)
class Voice:
    """One speaker: an accent and a variant of the vocal tract, and with them a pitch (espeak-ng units, 0..100)."""

    accent: str
    variant: str

    @property
    def speaker(self):
        """Kaldi speaker id."""
        return f"{self.accent}_{self.variant or 'plain'}".lower()

    @property
    def name(self):
        """Name for espeak-ng."""
        return {**ACCENTS, **OTHERS}[self.accent] + (f"+{self.variant}" if self.variant else "")

    @property
    def pitch(self):
        """The speaker's own pitch setting, 40..60."""
        return random.Random(f"pitch {self.speaker}").randint(40, 60)


def voices(name):
    """All voices of a set (``train``, ``dev``, ``test``): every variant of the set in every accent."""
    return [Voice(accent, variant) for variant in VARIANTS[name] for accent in ACCENTS]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("string", ctypes.c_char * 8),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class _Espeak:
    """One fresh copy of the library's state; unloaded when the ``with`` block ends."""

    _data_path = None

    @classmethod
    def _short_data_path(cls, path):
        if cls._data_path is None:
            cls._data_path = path
            if len(os.fsencode(path)) > _LONGEST_DATA_PATH:
                folder = tempfile.mkdtemp(prefix="espeak")
                atexit.register(shutil.rmtree, folder, ignore_errors=True)
                cls._data_path = os.path.join(folder, "data")
                os.symlink(path, cls._data_path)
        return cls._data_path

    def __enter__(self):
        try:
            import espeakng_loader
        except ImportError as error:
            raise RuntimeError("no module espeakng_loader; run: python3 -m pip install espeakng-loader") from error
        data = self._short_data_path(espeakng_loader.get_data_path())
        self._variants = Path(data, "voices", "!v")
        self._blocks, self._events = [], []
        self._callback = _CALLBACK(self._receive)
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        options = _PHONEME_EVENTS | _DONT_EXIT
        self.rate = self._library.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 0, os.fsencode(data), options)
        if self.rate <= 0:
            raise RuntimeError(f"espeak-ng found no data in {data}; reinstall espeakng-loader")
        self._library.espeak_SetSynthCallback(self._callback)
        # Otherwise espeak-ng seeds its noise with the time of day.
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        return self

    def __exit__(self, *unused):
        self._library.espeak_Terminate()
        _ctypes.dlclose(self._library._handle)

    def _receive(self, samples, count, events):
        if samples and count > 0:
            self._blocks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != _EVENT_END:
            event = events[index]
            self._events.append((event.type, event.sample, event.text_position, event.string))
            index += 1
        return 0

    def set_voice(self, voice, words_per_minute, pitch):
        if voice.variant and not (self._variants / voice.variant).is_file():
            raise RuntimeError(f"espeakng-loader has no voice variant {voice.variant!r}; install version 0.2.4 of it")
        if self._library.espeak_SetVoiceByName(voice.name.encode()):
            raise RuntimeError(f"espeakng-loader has no voice {voice.name!r}; install version 0.2.4 of it")
        settings = {_RATE: words_per_minute, _VOLUME: 100, _PITCH: pitch, _RANGE: 50, _WORD_GAP: 0}
        for parameter, value in settings.items():
            self._library.espeak_SetParameter(parameter, value, 0)

    def synthesise(self, text):
        """Audio (int16 array) and events ``(type, sample, text position, string)`` of one sentence."""
        self._blocks.clear()
        self._events.clear()
        data = text.encode()
        if self._library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None) or not self._blocks:
            raise RuntimeError(f"espeak-ng made no audio for {text!r}")
        return np.concatenate(self._blocks), list(self._events)


def word_times(sentence, events, length):
    """Words with first and end sample: ``[(word, start, end), ...]`` (the module's docstring says how).

    ``events`` are ``(type, sample, text position, string)`` of espeak-ng, ``length`` is the audio's in
    samples.  Raises ValueError where the events do not fit the sentence.
    """
    words = sentence.split()
    # espeak-ng counts characters from 1.
    offsets = {1 + len(" ".join([*words[:index], ""])): index for index in range(len(words))}
    marks = [
        (sample, offsets.get(position), None) if kind == _EVENT_WORD else (sample, None, string)
        for kind, sample, position, string in events
        if kind in (_EVENT_WORD, _EVENT_PHONEME)
    ]
    reported = {word for _, word, phoneme in marks if phoneme is None}
    starts, ends, current = [None] * len(words), [None] * len(words), None
    for place, (sample, word, phoneme) in enumerate(marks):
        after = marks[place + 1][0] if place + 1 < len(marks) else length
        if phoneme is None:
            if word is None:
                raise ValueError(f"espeak-ng reports a word inside a word of {sentence!r}; reword the grammar")
            current = word
            starts[word] = sample
        elif current is not None and not phoneme.startswith(b"_"):
            joined = current + 1
            if phoneme == b"D" and joined < len(words) and words[joined] == "the" and joined not in reported:
                starts[joined] = sample
                current = joined
            ends[current] = after
    times = list(zip(words, starts, ends, strict=True))
    if any(start is None or end is None or end <= start for _, start, end in times):
        raise ValueError(f"espeak-ng reports no time for some word of {sentence!r}; reword the grammar")
    return times


def audio_of(sentence, voice, words_per_minute, pitch):
    """Synthesise a sentence from the library's initial state: sample rate, int16 array, events.

    Raises RuntimeError when the library or the voice is missing.
    """
    with _Espeak() as espeak:
        espeak.set_voice(voice, words_per_minute, pitch)
        return (espeak.rate, *espeak.synthesise(sentence))


def speak(sentences, voice, words_per_minute, pitch):
    """Synthesise sentences, each from the library's initial state.

    Returns the sample rate and a list of ``(audio, words)``: an int16 array and ``[(word, start, end), ...]`` in
    samples.  Raises RuntimeError when the library or the voice is missing.
    """
    spoken = []
    for sentence in sentences:
        rate, audio, events = audio_of(sentence, voice, words_per_minute, pitch)
        spoken.append((audio, word_times(sentence, events, len(audio))))
    return rate, spoken


def _join(spoken, rate, rng):
    """Sentences with pauses between, silence around; as many of them as fit into ``MAX_SECONDS``."""
    pieces = [np.zeros(int(rng.uniform(0.1, 0.4) * rate))]
    words, length, voiced = [], len(pieces[0]), 0
    limit = int((MAX_SECONDS - 0.45) * rate)
    for audio, times in spoken:
        pause = int(rng.uniform(0.25, 0.8) * rate) if words else 0
        if words and length + pause + len(audio) > limit:
            break
        pieces += [np.zeros(pause), audio / 32768]
        words += [(word, (length + pause + start) / rate, (length + pause + end) / rate) for word, start, end in times]
        length += pause + len(audio)
        voiced += len(audio)
    tail = max(int(rng.uniform(0.1, 0.4) * rate), int((MIN_SECONDS + 0.01) * rate) - length)
    return np.concatenate([*pieces, np.zeros(tail)]), words, voiced


def _noise(count, rng):
    """Noise of unit power whose spectrum falls by 0 to 3 dB an octave."""
    size = 1 << (count - 1).bit_length()  # other lengths take up to twenty times as long
    spectrum = np.fft.rfft(rng.standard_normal(size))
    spectrum *= np.maximum(np.arange(len(spectrum)), 1) ** (-0.5 * rng.uniform())
    noise = np.fft.irfft(spectrum, size)[:count]
    return noise / np.sqrt(np.mean(noise**2))


def utterance(sentences, voice, words_per_minute, pitch, seed):
    """One utterance: sentences with pauses, mild noise, random gain.

    Args:
        sentences: list of sentences; those that would pass ``MAX_SECONDS`` are left out at the end.
        voice: a ``Voice``.
        words_per_minute: espeak-ng's rate.
        pitch: espeak-ng's pitch, 0..100.
        seed: sequence of ints for pauses, noise (20 to 40 dB below the speech) and gain (peak -18 to -2 dBFS).

    Returns:
        int16 samples at ``SAMPLE_RATE`` (mono) and ``[(word, start, end), ...]`` in seconds.
    """
    import soxr

    rng = np.random.default_rng(seed)
    rate, spoken = speak(sentences, voice, words_per_minute, pitch)
    audio, words, voiced = _join(spoken, rate, rng)
    power = np.sum(audio**2) / voiced
    audio = soxr.resample(audio, rate, SAMPLE_RATE)
    audio = audio + _noise(len(audio), rng) * np.sqrt(power) * 10 ** (-rng.uniform(20, 40) / 20)
    audio *= 10 ** (-rng.uniform(2, 18) / 20) / np.max(np.abs(audio))
    return np.round(audio * 32767).astype(np.int16), words


def seed_of(seed, name, index):
    """Seed of utterance ``index`` of set ``name`` in the corpus with ``seed``."""
    return [seed, zlib.crc32(name.encode()), index]

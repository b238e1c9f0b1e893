"""CTC on the streaming encoder: the aligner, and a baseline, decoded by best path (greedy) or prefix beam search.

No language model, no length normalisation.
"""

import argparse
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchaudio.functional import edit_distance

from espnet_speechllm_xl.config import CTCConfig, SearchConfig
from espnet_speechllm_xl.decoding.audio_chunks import checked_samples
from espnet_speechllm_xl.decoding.results import Transcript, distinct_texts, timed_words
from espnet_speechllm_xl.decoding.searches import log_add
from espnet_speechllm_xl.model.alignment import AlignmentError, TokenSpan, viterbi
from espnet_speechllm_xl.model.audio_to_frames import Acoustic
from espnet_speechllm_xl.model.ctc import CTCHead
from espnet_speechllm_xl.model.sequence import without_padding
from espnet_speechllm_xl.systems.base_model import AcousticModel, Trained
from espnet_speechllm_xl.systems.base_system import Choices, System
from espnet_speechllm_xl.tokenization import Tokenizer


def collapse(path: Sequence[int], blank: int) -> list[int]:
    """Return the token ids of a path of one id a frame: merge repeats, then remove blanks."""
    return [token for token, before in zip(path, [blank, *path], strict=False) if token not in (blank, before)]


class CTCModel(AcousticModel):
    """Encoder and CTC head.

    Args:
        acoustic: audio to encoder frames.
        vocab_size: tokenizer ids (V).
        dropout: probability, before the output layer.
    """

    def __init__(self, acoustic: Acoustic, vocab_size: int, dropout: float) -> None:
        super().__init__()
        self.acoustic = acoustic
        self.ctc = CTCHead(acoustic.encoder.output_size(), vocab_size, dropout)

    def log_probs(self, speech: Tensor, speech_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities (B, T, V + 1) and frame counts (B,) of audio (B, N) of so many samples (B,)."""
        frames, counts = self.acoustic(speech, speech_lengths)
        return self.ctc(frames), counts

    def forward(
        self, speech: Tensor, speech_lengths: Tensor, text: Tensor, text_lengths: Tensor, **_: object
    ) -> Trained:
        """Return the mean loss of an utterance, with statistics: the token error rate when evaluating.

        Args:
            speech: (B, N) audio.
            speech_lengths: (B,) samples.
            text: (B, U) token ids.
            text_lengths: (B,)
        """
        log_probs, counts = self.log_probs(speech, speech_lengths)
        text = without_padding(text)
        loss = self.ctc.loss(log_probs, counts, text, text_lengths).mean()
        stats: dict[str, Tensor] = {}
        if not self.training:
            stats["ter"] = self._error_rate(log_probs, counts, text, text_lengths)
        return self.espnet_result(loss, stats, speech.shape[0])

    def _error_rate(self, log_probs: Tensor, counts: Tensor, text: Tensor, text_lengths: Tensor) -> Tensor:
        """Return the token error rate of the best paths."""
        errors = 0
        for path, count, tokens, length in zip(log_probs.argmax(-1), counts, text, text_lengths, strict=True):
            hypothesis = collapse(path[:count].tolist(), self.ctc.blank)
            errors += edit_distance(tokens[:length].tolist(), hypothesis)
        return torch.tensor(errors / max(1, int(text_lengths.sum())))


@dataclasses.dataclass(frozen=True)
class Labelling:
    """A text that CTC finds."""

    tokens: tuple[int, ...]
    score: float  # log-probability of the paths that the search followed


class BestPath:
    """Greedy: the most probable token of every frame, repeats and blanks removed."""

    def __init__(self, _config: SearchConfig, blank: int) -> None:
        self._blank = blank

    def __call__(self, log_probs: Tensor) -> list[Labelling]:
        """Return the one text of log-probabilities (T, V + 1)."""
        scores, path = log_probs.max(-1)
        return [Labelling(tuple(collapse(path.tolist(), self._blank)), float(scores.sum()))]


Beam = dict[int, tuple[float, float]]  # prefix: log-probability of its paths that end in blank, in a token


class PrefixBeam:
    """Prefix beam search (Hannun et al. 2014, without language model), frame by frame.

    A prefix is scored by the sum of all its paths that stayed in the beam; each frame extends it by the
    ``beam_size`` most probable tokens.  With a beam as large as the space the scores are exact.
    """

    def __init__(self, config: SearchConfig, blank: int) -> None:
        self._beam_size, self._blank = config.beam_size, blank

    def __call__(self, log_probs: Tensor) -> list[Labelling]:
        """Return the texts of log-probabilities (T, V + 1), best first."""
        prefixes = _Prefixes()
        beam: Beam = {_Prefixes.EMPTY: (0.0, -math.inf)}
        tokens = torch.arange(log_probs.shape[1]) != self._blank
        for frame in log_probs.double():
            top = frame[tokens].topk(min(self._beam_size, int(tokens.sum()))).indices
            beam = self._best(self._extend(beam, frame.tolist(), tokens.nonzero()[top, 0].tolist(), prefixes))
        return [Labelling(prefixes.tokens(prefix), log_add(*ends)) for prefix, ends in beam.items()]

    def _extend(self, beam: Beam, frame: Sequence[float], candidates: Iterable[int], prefixes: "_Prefixes") -> Beam:
        """Return the beam after one more frame.

        Args:
            beam: before it.
            frame: V + 1 log-probabilities.
            candidates: tokens, of which the frame may add one.
            prefixes: numbers the token sequences.
        """
        longer: Beam = {}

        def add(prefix: int, in_blank: float, in_token: float) -> None:
            before = longer.get(prefix, (-math.inf, -math.inf))
            longer[prefix] = log_add(before[0], in_blank), log_add(before[1], in_token)

        for prefix, (in_blank, in_token) in beam.items():
            either, last = log_add(in_blank, in_token), prefixes.last(prefix)
            add(prefix, either + frame[self._blank], -math.inf if last is None else in_token + frame[last])
            for token in candidates:
                # A repeat is a new token only after a blank.
                before = in_blank if token == last else either
                add(prefixes.extend(prefix, token), -math.inf, before + frame[token])
        return longer

    def _best(self, beam: Beam) -> Beam:
        # Prefixes are numbered as they are met, which depends on nothing but the audio: ties are not left to chance.
        possible = [item for item in beam.items() if log_add(*item[1]) > -math.inf]
        return dict(sorted(possible, key=lambda item: (-log_add(*item[1]), item[0]))[: self._beam_size])


class _Prefixes:
    """Token sequences as numbers, so that extending a long one costs no more than extending a short one."""

    EMPTY = 0

    def __init__(self) -> None:
        self._parents = [self.EMPTY]
        self._tokens: list[int | None] = [None]
        self._children: dict[tuple[int, int], int] = {}

    def last(self, prefix: int) -> int | None:
        """Return the last token of a prefix; None of the empty one."""
        return self._tokens[prefix]

    def extend(self, prefix: int, token: int) -> int:
        """Return the prefix that is one token longer."""
        key = prefix, token
        if key not in self._children:
            self._children[key] = len(self._tokens)
            self._parents.append(prefix)
            self._tokens.append(token)
        return self._children[key]

    def tokens(self, prefix: int) -> tuple[int, ...]:
        """Return all tokens of a prefix."""
        found: list[int] = []
        while (token := self._tokens[prefix]) is not None:
            found.append(token)
            prefix = self._parents[prefix]
        return tuple(reversed(found))


SEARCHES: dict[str, Callable[[SearchConfig, int], Callable[[Tensor], list[Labelling]]]] = {
    "greedy": BestPath,
    "prefix_beam": PrefixBeam,
}


@torch.no_grad()
def transcribe(
    model: CTCModel,
    tokenizer: Tokenizer,
    chunking: None,
    search_config: SearchConfig,
    recordings: Sequence[npt.ArrayLike | Tensor],
) -> list[list[Transcript]]:
    """Return the n-best list of each recording (n,); see :meth:`System.transcribe`."""
    speech = [checked_samples(samples, model) for samples in recordings]
    lengths = torch.tensor([len(samples) for samples in speech], device=speech[0].device)
    log_probs, counts = model.log_probs(pad_sequence(speech, batch_first=True), lengths)
    find = SEARCHES[search_config.method](search_config, model.ctc.blank)
    found = []
    ends = model.acoustic.audio_frames(counts)
    for frames, count, end in zip(log_probs.cpu(), counts.tolist(), ends.tolist(), strict=True):
        texts = distinct_texts(tokenizer, find(frames[:count]))
        nbest = list(texts.items())[: search_config.nbest]
        found.append([_transcript(tokenizer, frames[:count], model.ctc.blank, end, *item) for item in nbest])
    return found


def _transcript(
    tokenizer: Tokenizer, log_probs: Tensor, blank: int, end: int, text: str, labelling: Labelling
) -> Transcript:
    """Return a text with word times, from the best path of its tokens within the first ``end`` frames, the audio."""
    tokens = labelling.tokens
    spans = _spans(log_probs, list(tokens), blank, end) if tokens else []
    scores = [
        float(log_probs[span.start : span.end + 1, token].mean()) for span, token in zip(spans, tokens, strict=True)
    ]
    times = [(span.start, span.end + 1) for span in spans]
    return Transcript(
        text=text,
        score=labelling.score,
        tokens=tuple(tokenizer.pieces[token] for token in tokens),
        token_ids=tokens,
        words=tuple(timed_words(tokenizer, tokens, scores, times)),
        capped=None,
    )


def _spans(log_probs: Tensor, tokens: list[int], blank: int, end: int) -> list[TokenSpan]:
    try:
        return viterbi(log_probs[:end], tokens, blank)
    except AlignmentError:  # there are so many that the last were found behind the audio: they end with it
        spans = viterbi(log_probs, tokens, blank)
        return [TokenSpan(min(span.start, end - 1), min(span.end, end - 1)) for span in spans]


class CTCSystem(System):
    """Encoder and CTC head."""

    name = "ctc"
    criterion = ("valid", "ter", "min")
    sections = {**System.sections, "ctc_conf": CTCConfig}
    search_choices = Choices("search", SEARCHES, default="greedy")
    transcribe = staticmethod(transcribe)

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> CTCModel:
        """Make the model of ``args``; see :meth:`System.build_model`."""
        acoustic = cls.build_acoustic(args)
        return CTCModel(acoustic, len(args.token_list), cls.section(args, "ctc_conf").dropout)


__getattr__ = CTCSystem.task_by_name  # CTCTask

if __name__ == "__main__":
    CTCSystem.task().main()

"""CTC on the streaming encoder: the aligner, and a baseline, decoded by best path (greedy) or prefix beam search.

No language model, no length normalisation.
"""

import argparse
import dataclasses
import math
from collections import defaultdict

import torch
from espnet2.train.class_choices import ClassChoices
from torch.nn.utils.rnn import pad_sequence
from torchaudio.functional import edit_distance

from espnet_speechllm_xl.config import CTCConfig
from espnet_speechllm_xl.decoding.audio_chunks import checked_samples
from espnet_speechllm_xl.decoding.results import Transcript, distinct_texts, timed_words
from espnet_speechllm_xl.decoding.searches import log_add
from espnet_speechllm_xl.model.alignment import AlignmentError, TokenSpan, viterbi
from espnet_speechllm_xl.model.ctc import CTCHead
from espnet_speechllm_xl.model.sequence import without_padding
from espnet_speechllm_xl.systems.base_model import AcousticModel
from espnet_speechllm_xl.systems.base_task import SpeechTask


def collapse(path, blank):
    """Token ids of a frame-wise path (list of int): repeats merged, blanks removed."""
    return [token for token, before in zip(path, [blank, *path], strict=False) if token not in (blank, before)]


class CTCModel(AcousticModel):
    """Encoder and CTC head.

    Args:
        acoustic: :class:`~espnet_speechllm_xl.model.acoustic_encoder.Acoustic`.
        vocab_size: tokenizer ids (V).
        dropout: probability, before the output layer.
    """

    def __init__(self, acoustic, vocab_size, dropout):
        super().__init__()
        self.acoustic = acoustic
        self.ctc = CTCHead(acoustic.encoder.output_size(), vocab_size, dropout)

    def log_probs(self, speech, speech_lengths):
        """Log-probabilities (B, T, V + 1) and frame counts (B,) of audio (B, N), (B,)."""
        frames, counts = self.acoustic(speech, speech_lengths)
        return self.ctc(frames), counts

    def forward(self, speech, speech_lengths, text, text_lengths, **_):
        """ESPnet's ``(loss, stats, weight)``: mean loss of an utterance; token error rate when evaluating."""
        log_probs, counts = self.log_probs(speech, speech_lengths)
        text = without_padding(text)
        loss = self.ctc.loss(log_probs, counts, text, text_lengths).mean()
        stats = {}
        if not self.training:
            stats["ter"] = self._error_rate(log_probs, counts, text, text_lengths)
        return self.answer(loss, stats, speech.shape[0])

    def _error_rate(self, log_probs, counts, text, text_lengths):
        errors = 0
        for path, count, tokens, length in zip(log_probs.argmax(-1), counts, text, text_lengths, strict=True):
            hypothesis = collapse(path[:count].tolist(), self.ctc.blank)
            errors += edit_distance(tokens[:length].tolist(), hypothesis)
        return torch.tensor(errors / max(1, int(text_lengths.sum())))


@dataclasses.dataclass(frozen=True)
class Labelling:
    """A text of CTC."""

    tokens: tuple
    score: float  # log-probability of its paths that were followed


class BestPath:
    """Greedy: the most probable token of every frame, repeats and blanks removed."""

    def __init__(self, _config, blank):
        self._blank = blank

    def __call__(self, log_probs):
        """A list of one :class:`Labelling` for log-probabilities (T, V + 1)."""
        scores, path = log_probs.max(-1)
        return [Labelling(tuple(collapse(path.tolist(), self._blank)), float(scores.sum()))]


class PrefixBeam:
    """Prefix beam search (Hannun et al. 2014, without language model), frame by frame.

    A prefix is scored by the sum of all its paths that stayed in the beam; each frame extends it by the
    ``beam_size`` most probable tokens.  With a beam as large as the space the scores are exact.
    """

    def __init__(self, config, blank):
        self._beam_size, self._blank = config.beam_size, blank

    def __call__(self, log_probs):
        """A list of :class:`Labelling`, best first, for log-probabilities (T, V + 1)."""
        prefixes = _Prefixes()
        beam = {_Prefixes.EMPTY: (0.0, -math.inf)}  # prefix: log-probability of its paths that end in blank, in a token
        tokens = torch.arange(log_probs.shape[1]) != self._blank
        for frame in log_probs.double():
            top = frame[tokens].topk(min(self._beam_size, int(tokens.sum()))).indices
            beam = self._best(self._extend(beam, frame.tolist(), tokens.nonzero()[top, 0].tolist(), prefixes))
        return [Labelling(prefixes.tokens(prefix), log_add(*ends)) for prefix, ends in beam.items()]

    def _extend(self, beam, frame, candidates, prefixes):
        """``beam`` after one more frame (list of V + 1), which may add one of ``candidates``."""
        longer = defaultdict(lambda: [-math.inf, -math.inf])
        for prefix, (in_blank, in_token) in beam.items():
            either, last = log_add(in_blank, in_token), prefixes.last(prefix)
            same = longer[prefix]
            same[0] = log_add(same[0], either + frame[self._blank])
            if last is not None:
                same[1] = log_add(same[1], in_token + frame[last])
            for token in candidates:
                # A repeat is a new token only after a blank.
                before = in_blank if token == last else either
                grown = longer[prefixes.extend(prefix, token)]
                grown[1] = log_add(grown[1], before + frame[token])
        return longer

    def _best(self, beam):
        # Prefixes are numbered as they are met, which depends on nothing but the audio: ties are not left to chance.
        possible = [item for item in beam.items() if log_add(*item[1]) > -math.inf]
        return dict(sorted(possible, key=lambda item: (-log_add(*item[1]), item[0]))[: self._beam_size])


class _Prefixes:
    """Token sequences as numbers, so that extending a long one costs no more than extending a short one."""

    EMPTY = 0

    def __init__(self):
        self._parents, self._tokens, self._children = [None], [None], {}

    def last(self, prefix):
        """Its last token; None of the empty one."""
        return self._tokens[prefix]

    def extend(self, prefix, token):
        """The prefix that ``token`` makes of ``prefix``."""
        key = prefix, token
        if key not in self._children:
            self._children[key] = len(self._tokens)
            self._parents.append(prefix)
            self._tokens.append(token)
        return self._children[key]

    def tokens(self, prefix):
        """All its tokens."""
        found = []
        while prefix != self.EMPTY:
            found.append(self._tokens[prefix])
            prefix = self._parents[prefix]
        return tuple(reversed(found))


SEARCHES = {"greedy": BestPath, "prefix_beam": PrefixBeam}


@torch.no_grad()
def transcribe(model, tokenizer, _chunking, search, recordings):
    """The n-best :class:`~espnet_speechllm_xl.decoding.results.Transcript` list of each recording (n,) in a list."""
    speech = [checked_samples(samples, model) for samples in recordings]
    lengths = torch.tensor([len(samples) for samples in speech], device=speech[0].device)
    log_probs, counts = model.log_probs(pad_sequence(speech, batch_first=True), lengths)
    find = SEARCHES[search.method](search, model.ctc.blank)
    found = []
    heard = model.acoustic.heard(counts)
    for frames, count, end in zip(log_probs.cpu(), counts.tolist(), heard.tolist(), strict=True):
        texts = distinct_texts(tokenizer, find(frames[:count]))
        nbest = list(texts.items())[: search.nbest]
        found.append([_transcript(tokenizer, frames[:count], model.ctc.blank, end, *item) for item in nbest])
    return found


def _transcript(tokenizer, log_probs, blank, end, text, labelling):
    """The times of its words are those of the best path of its tokens within the audio, the first ``end`` frames."""
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


def _spans(log_probs: torch.Tensor, tokens: list, blank: int, end: int) -> list:
    try:
        return viterbi(log_probs[:end], tokens, blank)
    except AlignmentError:  # there are so many that the last were found behind the audio: they end with it
        spans = viterbi(log_probs, tokens, blank)
        return [TokenSpan(min(span.start, end - 1), min(span.end, end - 1)) for span in spans]


class CTCTask(SpeechTask):
    """Encoder and CTC head."""

    name = "ctc"
    criterion = ("valid", "ter", "min")
    sections = {**SpeechTask.sections, "ctc_conf": CTCConfig}
    search_choices = ClassChoices("search", SEARCHES, default="greedy")
    transcribe = staticmethod(transcribe)

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> CTCModel:
        """The model of ``args``."""
        acoustic = cls.build_acoustic(args)
        return CTCModel(acoustic, len(args.token_list), cls.section(args, "ctc_conf").dropout)


if __name__ == "__main__":
    CTCTask.main()

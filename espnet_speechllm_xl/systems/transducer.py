"""Transducer (Graves 2012) on the streaming encoder: ESPnet's decoder, joint network and searches, torchaudio's loss.

Classes are ESPnet's: the blank = 0, then the tokenizer's ids + 1.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch
from espnet2.asr_transducer.joint_network import JointNetwork
from espnet2.utils.get_default_kwargs import get_default_kwargs
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchaudio.functional import rnnt_loss

from espnet_speechllm_xl.config import LossConfig, SearchConfig
from espnet_speechllm_xl.decoding.audio_chunks import checked_samples
from espnet_speechllm_xl.decoding.results import Transcript, distinct_texts
from espnet_speechllm_xl.model.audio_to_frames import Acoustic
from espnet_speechllm_xl.model.ctc import CTCHead
from espnet_speechllm_xl.model.sequence import without_padding
from espnet_speechllm_xl.settings import ConfigError, check_names
from espnet_speechllm_xl.systems.base_model import AcousticModel, Trained
from espnet_speechllm_xl.systems.base_system import Choices, System, encoder_choices
from espnet_speechllm_xl.tokenization import Tokenizer
from espnet_speechllm_xl.training import compat

with compat.without_notice():
    from espnet2.asr.decoder.transducer_decoder import TransducerDecoder
    from espnet2.asr.transducer.beam_search_transducer import BeamSearchTransducer

BLANK = 0


class TransducerModel(AcousticModel):
    """Encoder, label decoder and joint network.

    Args:
        acoustic: audio to encoder frames.
        decoder: ESPnet's, of V + 1 classes.
        joint_network: ESPnet's, of V + 1 classes.
        loss: the weight of the auxiliary CTC loss.

    Raises:
        ConfigError: ``loss`` has label smoothing, which has no meaning here.
    """

    def __init__(
        self, acoustic: Acoustic, decoder: TransducerDecoder, joint_network: JointNetwork, loss: LossConfig
    ) -> None:
        super().__init__()
        if loss.label_smoothing:
            raise ConfigError("loss_conf label_smoothing: a transducer's loss is over paths: leave it at 0")
        if loss.ctc_tokenizer is not None:
            raise ConfigError("loss_conf ctc_tokenizer: a transducer's CTC has the transducer's tokens: set null")
        self.acoustic = acoustic
        self.decoder = decoder
        self.joint_network = joint_network
        self.loss_config = loss
        self.ctc = CTCHead(acoustic.encoder.output_size(), decoder.odim - 1) if loss.ctc_weight else None

    def forward(
        self, speech: Tensor, speech_lengths: Tensor, text: Tensor, text_lengths: Tensor, **_: object
    ) -> Trained:
        """Return the mean loss of an utterance, with statistics.

        Args:
            speech: (B, N) audio.
            speech_lengths: (B,) samples.
            text: (B, U) token ids.
            text_lengths: (B,)
        """
        frames, counts = self.acoustic(speech, speech_lengths)
        text = without_padding(text)
        loss = self._loss(frames, counts, text, text_lengths)
        stats = {"loss_transducer": loss.detach()}
        if self.ctc is not None:
            ctc_loss = self.ctc.loss(self.ctc(frames), counts, text, text_lengths).mean()
            stats["loss_ctc"] = ctc_loss.detach()
            loss = loss + self.loss_config.ctc_weight * ctc_loss
        return self.espnet_result(loss, stats, speech.shape[0])

    def _loss(self, frames: Tensor, counts: Tensor, text: Tensor, text_lengths: Tensor) -> Tensor:
        """Return the mean transducer loss () of the utterances that have a frame."""
        # Audio without a frame has no path, and torchaudio reads memory that is not its own; CTC leaves it out, too.
        has_frames = counts.to(text.device) > 0
        if not has_frames.any():
            return frames.sum() * 0
        frames, counts, text, text_lengths = (
            each[has_frames.to(each.device)] for each in (frames, counts, text, text_lengths)
        )
        text = text[:, : int(text_lengths.max())]  # torchaudio wants the width of the longest one that is left
        self.decoder.set_device(frames.device)
        labels = torch.nn.functional.pad(text + 1, (1, 0), value=BLANK)
        joint = self.joint_network(frames[:, :, None], self.decoder(labels)[:, None])  # (B, T, U + 1, V + 1)
        lengths = (each.to(frames.device, torch.int32) for each in (counts, text_lengths))
        wide = torch.promote_types(joint.dtype, torch.float32)
        return rnnt_loss(joint.to(wide), (text + 1).int(), *lengths, blank=BLANK, reduction="mean")


@torch.no_grad()
def transcribe(
    model: TransducerModel,
    tokenizer: Tokenizer,
    chunking: None,
    search_config: SearchConfig,
    recordings: Sequence[npt.ArrayLike | Tensor],
) -> list[list[Transcript]]:
    """Return the n-best list of each recording (n,); see :meth:`System.transcribe`.

    Scores are normalised by length, as ESPnet does; words have no times.
    """
    speech = [checked_samples(samples, model) for samples in recordings]
    if speech[0].dtype != torch.float32 or next(model.parameters()).dtype != torch.float32:
        raise ConfigError("ESPnet's transducer searches run in float32 only: leave out the dtype")
    lengths = torch.tensor([len(samples) for samples in speech], device=speech[0].device)
    frames, counts = model.acoustic(pad_sequence(speech, batch_first=True), lengths)
    pairs = zip(frames, counts.tolist(), strict=True)
    return [_decode(model, tokenizer, search_config, one[:count]) for one, count in pairs]


def _decode(
    model: TransducerModel, tokenizer: Tokenizer, search_config: SearchConfig, frames: Tensor
) -> list[Transcript]:
    """Return the n-best list of one recording's frames (T, E)."""
    # ESPnet's searches that need fewer hypotheses than classes fail on a wider beam.
    widest = max(1, model.decoder.odim - {"alsd": 1, "tsd": 1, "maes": 2}.get(search_config.method, 0))
    beam_search = BeamSearchTransducer(
        model.decoder,
        model.joint_network,
        beam_size=1 if search_config.method == "greedy" else min(search_config.beam_size, widest),
        search_type=search_config.method,
        u_max=len(frames),  # tokens; ESPnet's 50 would cut long audio short
        nbest=search_config.beam_size,  # some of them can have the same text
    )
    hypotheses = [_Labelling(hypothesis) for hypothesis in beam_search(frames)]
    texts = distinct_texts(tokenizer, hypotheses)
    return [_transcript(tokenizer, *item) for item in list(texts.items())[: search_config.nbest]]


class _Labelling:
    """ESPnet's hypothesis with the tokenizer's ids."""

    def __init__(self, hypothesis: Any) -> None:  # noqa: ANN401  # ESPnet has several classes of them
        self.tokens = tuple(int(label) - 1 for label in hypothesis.yseq[1:])
        self.score = float(hypothesis.score) / len(hypothesis.yseq)


def _transcript(tokenizer: Tokenizer, text: str, labelling: _Labelling) -> Transcript:
    return Transcript(
        text=text,
        score=labelling.score,
        tokens=tuple(tokenizer.pieces[token] for token in labelling.tokens),
        token_ids=labelling.tokens,
        words=(),
        capped=None,
    )


SEARCHES = ("greedy", "default", "alsd", "tsd", "nsc", "maes")  # ESPnet's


class TransducerSystem(System):
    """Encoder, label decoder, joint network."""

    name = "transducer"
    criterion = ("valid", "loss", "min")
    sections = {**System.sections, "loss_conf": LossConfig}
    decoder_choices = Choices("decoder", {"transducer": TransducerDecoder}, default="transducer")
    part_choices = [encoder_choices, decoder_choices]
    part_sections = {"joint_network_conf": JointNetwork}
    search_choices = Choices("search", dict.fromkeys(SEARCHES, BeamSearchTransducer), default="default")
    transcribe = staticmethod(transcribe)
    word_times = False

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> TransducerModel:
        """Make the model of ``args``; see :meth:`System.build_model`."""
        acoustic = cls.build_acoustic(args)
        classes = len(args.token_list) + 1
        decoder_class = cls.decoder_choices.classes[args.decoder]
        for section, built in (("decoder_conf", decoder_class), ("joint_network_conf", JointNetwork)):
            check_names(getattr(args, section), list(get_default_kwargs(built)), section)
        decoder = decoder_class(classes, **args.decoder_conf)
        joint = JointNetwork(classes, acoustic.encoder.output_size(), decoder.dunits, **args.joint_network_conf)
        return TransducerModel(acoustic, decoder, joint, cls.section(args, "loss_conf"))


__getattr__ = TransducerSystem.task_by_name  # TransducerTask

if __name__ == "__main__":
    TransducerSystem.task().main()

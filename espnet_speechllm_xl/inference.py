"""Load a trained model and transcribe: ``Speech2Text``."""

import argparse
import dataclasses
import functools
import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import ChunkingConfig, SearchConfig, StreamConfig
from espnet_speechllm_xl.corpus.audio import AudioError, conform, read_file
from espnet_speechllm_xl.decoding.joint_ctc import JointModel, check_model
from espnet_speechllm_xl.decoding.phrases import PhraseTree, make_tree
from espnet_speechllm_xl.decoding.prompts import with_prompt
from espnet_speechllm_xl.decoding.results import Transcript
from espnet_speechllm_xl.decoding.searches import live_method
from espnet_speechllm_xl.decoding.streams import Stream, transcribe
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.experiment import CONFIG
from espnet_speechllm_xl.settings import ConfigError, from_dict
from espnet_speechllm_xl.systems import find_system
from espnet_speechllm_xl.tokenization import Tokenizer
from espnet_speechllm_xl.trained_model import load_model, unpacked

log = logging.getLogger(__name__)

if TYPE_CHECKING:  # systems are imported when a model needs them
    from espnet_speechllm_xl.systems.base_system import System


class Speech2Text:
    """Transcribe files and arrays, with a SpeechLLM-XL or a baseline.

    >>> s2t = Speech2Text.from_pretrained("exp/speechllm_xl_tiny")
    >>> s2t("speech.wav")[0].text

    Attributes:
        system: of the model (systems/).
        model: in evaluation mode; with a ``ctc_weight``, its joint scoring with CTC.
        tokenizer: of the model.
        search: the settings of the search.
        chunking: of the decoding; None: the model has no chunks.
    """

    def __init__(
        self,
        system: "type[System]",
        model: Any,  # noqa: ANN401  # a ChunkModel, or a baseline's model without chunks
        tokenizer: Tokenizer,
        search: SearchConfig,
        chunking: ChunkingConfig | None,
    ) -> None:
        self.system = system
        self.model = model
        self.tokenizer = tokenizer
        self.search_config = search
        self.chunking = chunking

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str = "cpu",
        dtype: str = "float32",
        weights: str | None = None,
        chunk_size: float | None = None,
        context: float | None = None,
        search: str | None = None,
        look_ahead: float | None = None,
        llm: str | Path | None = None,
        **search_conf: Any,
    ) -> "Speech2Text":
        """Load a model directory or a packed file.

        Args:
            path: experiment directory, or a file made by ``speechllm-xl pack``.
            device: "cpu", "cuda", ...
            dtype: "float32", "float64", "bfloat16", "int8" (weights of 8 bits, on a CPU), ...
            weights: file name of the weights in the directory; None: the averaged best.
            chunk_size: seconds, in place of training's; infinity is allowed.
            context: seconds, in place of training's; infinity is allowed.
            search: "greedy", "chunk_sync" or "alsd", or as the baseline's task has them; None: as the model's
                configuration says.
            look_ahead: seconds of audio behind a segment that the encoder waits for, in place of training's.
            llm: directory of the pretrained language model that the decoder was trained from; None: the one in the
                packed file, else where it was in training.
            **search_conf: other fields of :class:`~espnet_speechllm_xl.config.SearchConfig`.

        Raises:
            ModelError: the model is missing, damaged or of another task.
            TokenizerError: the tokenizer is missing or damaged.
            UserError: a setting does not fit (ConfigError), or is off the grid of frames and chunks.
        """
        with unpacked(Path(path)) as directory:
            model, tokenizer, args = load_model(directory, None, weights, device, dtype, llm)
            own = _own_search(directory, args, model, given=search_conf)
        system = find_system(args.task)
        choices = system.search_choices
        if "method" in search_conf:
            raise ConfigError(f"method '{search_conf['method']}': give search instead")
        settings = {**own, **search_conf, "method": search or own["method"]}
        config = from_dict(SearchConfig, settings, "search_conf")
        if config.method not in choices.classes:
            raise ConfigError(
                f"search '{config.method}': a model of task '{system.name}' has {', '.join(choices.classes)}"
            )
        chunking = _rechunk(getattr(model, "chunking", None), chunk_size, context, look_ahead)
        if chunking is not None:
            chunking.check_against(model.acoustic.encoder.config)
            _warn(chunking.not_trained(model.chunking, model.acoustic.encoder.config))
        if config.ctc_weight:
            model = JointModel(model, config.ctc_weight)
        return cls(system, model, tokenizer, config, chunking)

    @property
    def sample_rate(self) -> int:
        """Return the rate in Hz that arrays and streams must have."""
        return self.model.acoustic.config.sample_rate

    def __call__(
        self,
        audio: str | Path | npt.ArrayLike,
        sample_rate: int | None = None,
        channel: int | None = None,
        prompt: str = "",
        phrases: str | Iterable[str] | PhraseTree | None = None,
    ) -> list[Transcript]:
        """Return the n-best list, best first.

        Args:
            audio: a file name, or a float array (n,) in [-1, 1].
            sample_rate: Hz of the array; another rate than the model's is resampled.
            channel: which one (0-based) of several; None averages them.
            prompt: text that the decoder reads first, such as names to expect; see :meth:`transcribe_batch`.
            phrases: that are expected, such as names; see :meth:`phrase_tree`.
        """
        return self.transcribe_batch([self.load(audio, sample_rate, channel)], prompt, [self.phrase_tree(phrases)])[0]

    def load(
        self,
        audio: str | Path | npt.ArrayLike,
        sample_rate: int | None = None,
        channel: int | None = None,
        notes: dict | None = None,
    ) -> npt.NDArray:
        """Return samples (n,) at the model's rate.

        Args:
            audio: a file name, or a float array (n,) in [-1, 1].
            sample_rate: Hz of the array.
            channel: which one (0-based) of several; None averages them.
            notes: takes the remarks on the audio (audio_remarks.py); None logs them.

        Raises:
            AudioError: the audio cannot be used.
        """
        if isinstance(audio, (str, Path)):
            return read_file(audio, self.sample_rate, channel=channel, notes=notes)
        shape = tuple(np.shape(audio))
        if len(shape) == 2 and shape[1] > shape[0]:
            raise AudioError("unreadable", f"audio array of {shape}: give (samples,) or its transpose")
        rate = self.sample_rate if sample_rate is None else sample_rate
        if not rate > 0:
            raise AudioError("sample-rate", f"audio array at {rate} Hz: give the rate that it was recorded with")
        return conform(audio, rate, self.sample_rate, channel=channel, notes=notes)

    def transcribe_batch(
        self,
        recordings: Sequence[npt.ArrayLike | Tensor],
        prompt: str | Sequence[str] = "",
        phrases: PhraseTree | Sequence[PhraseTree | None] | None = None,
    ) -> list[list[Transcript]]:
        """Return the n-best lists of several recordings (n,); decoded together, each gives what it gives alone.

        Args:
            recordings: samples of each.
            prompt: text that the decoder reads before the first chunk, of all recordings or of each; "": none.  The
                model must have been trained with prompts (``text_prompt_conf``).
            phrases: that are expected in all recordings or in each (:meth:`phrase_tree`); None: none.

        Raises:
            ConfigError: the model takes no prompt, or no prompt of this length.
        """
        if not recordings:
            return []
        prompts = [prompt] * len(recordings) if isinstance(prompt, str) else prompt
        models = [self.prompted(one) for one in prompts]
        trees = [phrases] * len(recordings) if phrases is None or isinstance(phrases, PhraseTree) else phrases
        plain = all(model is self.model for model in models) and all(tree is None for tree in trees)
        if self.chunking is None or plain:
            return self.system.transcribe(self.model, self.tokenizer, self.chunking, self.search_config, recordings)
        return transcribe(self.model, self.tokenizer, self.chunking, self.search_config, recordings, models, trees)

    def phrase_tree(self, phrases: str | Iterable[str] | PhraseTree | None) -> PhraseTree | None:
        """Return phrases as the searches take them; None where there are none, or ``phrase_boost`` is 0.

        Args:
            phrases: lines ``phrase`` or ``phrase :weight``, in one text or one by one; what this method returned is
                returned as it is.

        Raises:
            ConfigError: the model does not write chunk by chunk.
            UserError: a line is bad, or the tokenizer lacks characters of phrases.
        """
        if phrases is None or isinstance(phrases, PhraseTree):
            return phrases
        lines = phrases.splitlines() if isinstance(phrases, str) else list(phrases)
        if any(line.strip() for line in lines) and self.chunking is None:
            raise ConfigError(f"a model of task '{self.system.name}' takes no phrases: leave them out")
        return make_tree(self.tokenizer, lines, self.search_config.phrase_boost)

    def prompted(self, prompt: str) -> Any:  # noqa: ANN401  # see ``model``
        """Return the model for recordings with a prompt.

        Raises:
            ConfigError: see :meth:`transcribe_batch`.
        """
        if not prompt.strip():
            return self.model
        if self.chunking is None:
            raise ConfigError(f"a model of task '{self.system.name}' takes no prompt: leave it out")
        return with_prompt(self.model, self.tokenizer, prompt)

    def stream(
        self,
        search: str | None = None,
        chunk_size: float | None = None,
        context: float | None = None,
        look_ahead: float | None = None,
        prompt: str = "",
        phrases: str | Iterable[str] | PhraseTree | None = None,
        **stream_conf: Any,
    ) -> Stream:
        """Open a stream for audio that is still arriving.

        Args:
            search: "chunk_sync" or "greedy"; None: this object's, chunk_sync in place of alsd.
            chunk_size: seconds, in place of this object's.
            context: seconds, in place of this object's.
            look_ahead: seconds, in place of this object's.
            prompt: text that the decoder reads first; see :meth:`transcribe_batch`.
            phrases: that are expected; see :meth:`phrase_tree`.
            **stream_conf: fields of :class:`~espnet_speechllm_xl.config.StreamConfig`.

        Raises:
            ConfigError: a field is unknown, the search needs all audio before the first word, or the model has no
                chunks or takes no prompt.
            UserError: a duration is off the grid of frames and chunks, or phrases are bad.
        """
        if self.chunking is None:
            raise ConfigError(
                f"a model of task '{self.system.name}' decodes whole recordings only: a live stream needs one that "
                "writes chunk by chunk"
            )
        chunking = _rechunk(self.chunking, chunk_size, context, look_ahead)
        assert chunking is not None
        config = from_dict(StreamConfig, stream_conf, "stream_conf")
        search_config = dataclasses.replace(self.search_config, method=search or live_method(self.search_config.method))
        tree = self.phrase_tree(phrases)
        stream = Stream(self.prompted(prompt), self.tokenizer, chunking, search_config, config, tree)
        _warn(stream.remarks)
        return stream


def _warn(lines: Sequence[str]) -> None:
    for line in lines:
        _warn_once(line)


@functools.cache
def _warn_once(line: str) -> None:
    log.warning(line)


def _own_search(directory: Path, args: argparse.Namespace, model: torch.nn.Module, given: dict) -> dict:
    """Return the model's own fields of :class:`SearchConfig`, except the fields that are ``given`` otherwise.

    Raises:
        ConfigError: they are bad; it names the model's file.
    """
    # An aligner of before it could be decoded has no settings for that.
    method = getattr(args, "search", find_system(args.task).search_choices.default)
    settings = {**getattr(args, "search_conf", {}), "method": method}
    settings = {name: value for name, value in settings.items() if name not in given}
    try:
        if from_dict(SearchConfig, settings, "search_conf").ctc_weight:
            check_model(model)
    except ConfigError as error:
        raise ConfigError(f"{directory / CONFIG}: {error}: restore it or train again") from error
    return settings


def _rechunk(
    chunking: ChunkingConfig | None, chunk_size: float | None, context: float | None, look_ahead: float | None
) -> ChunkingConfig | None:
    """Return ``chunking`` with a user's sizes in seconds; a context not given keeps its length.

    Args:
        chunking: of the model; None: it has no chunks.
        chunk_size: None: as in ``chunking``.
        context: of the decoder.
        look_ahead: of the encoder; None: as in ``chunking``.

    Raises:
        ConfigError: the model has no chunks, but one of the others is given.
        UserError: a duration is off the grid of frames and chunks.
    """
    if chunking is None:
        if (chunk_size, context, look_ahead) != (None, None, None):
            raise ConfigError("this model has no chunks: leave out the chunk size, the context and the look-ahead")
        return None
    if look_ahead is not None:
        if look_ahead == math.inf:
            raise UserError("look-ahead inf s: give a finite duration")
        frames = timeline.frames_from_seconds(look_ahead, "look-ahead")
        chunking = dataclasses.replace(chunking, look_ahead=frames)
    if chunk_size is not None:
        chunking = chunking.resized(timeline.frames_from_seconds(chunk_size, "chunk size"))
    if context is not None:
        chunking = dataclasses.replace(chunking, context=timeline.chunks_from_seconds(context, chunking.chunk))
    return chunking

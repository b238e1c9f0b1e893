"""Load a trained model and transcribe: ``Speech2Text``."""

import argparse
import dataclasses
from pathlib import Path

import torch

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import SearchConfig, StreamConfig
from espnet_speechllm_xl.corpus.audio import AudioError, conform, read_file
from espnet_speechllm_xl.decoding.joint_ctc import JointModel, check_model
from espnet_speechllm_xl.decoding.searches import live_method
from espnet_speechllm_xl.decoding.streams import Stream
from espnet_speechllm_xl.experiment import CONFIG
from espnet_speechllm_xl.settings import ConfigError, from_dict
from espnet_speechllm_xl.systems import find_task
from espnet_speechllm_xl.trained_model import load_model, unpacked


class Speech2Text:
    """Transcribe files and arrays, with a SpeechLLM-XL or a baseline.

    >>> s2t = Speech2Text.from_pretrained("exp/speechllm_xl_tiny")
    >>> s2t("speech.wav")[0].text
    """

    def __init__(self, task, model, tokenizer, search, chunking):
        self.task = task
        self.model = model
        self.tokenizer = tokenizer
        self.search = search
        self.chunking = chunking  # None: the model has no chunks

    @classmethod
    def from_pretrained(
        cls,
        path,
        device="cpu",
        dtype="float32",
        weights=None,
        chunk_size=None,
        context=None,
        search=None,
        **search_conf,
    ):
        """Load a model directory or a packed file.

        Args:
            path: experiment directory, or a file made by ``speechllm-xl pack``.
            device: "cpu", "cuda", ...
            dtype: "float32", "float64", "bfloat16", ...
            weights: file name of the weights in the directory; None: the averaged best.
            chunk_size, context: seconds, in place of training's; infinity is allowed.
            search: "greedy", "chunk_sync" or "alsd", or as the baseline's task has them; None: as the model's
                configuration says.
            search_conf: other fields of :class:`~espnet_speechllm_xl.config.SearchConfig`.

        Raises:
            ModelError: the model is missing, damaged or of another task.
            TokenizerError: the tokenizer is missing or damaged.
            UserError: a setting does not fit (ConfigError), or is off the grid of frames and chunks.
        """
        with unpacked(Path(path)) as directory:
            model, tokenizer, args = load_model(directory, None, weights, device, dtype)
            own = _own_search(directory, args, model, given=search_conf)
        task = find_task(args.task)
        choices = task.search_choices
        if "method" in search_conf:
            raise ConfigError(f"method '{search_conf['method']}': give search instead")
        settings = {**own, **search_conf, "method": search or own["method"]}
        config = from_dict(SearchConfig, settings, "search_conf")
        if config.method not in choices.classes:
            raise ConfigError(
                f"search '{config.method}': a model of task '{task.name}' has {', '.join(choices.classes)}"
            )
        chunking = _rechunk(getattr(model, "chunking", None), chunk_size, context)
        if chunking is not None:
            chunking.check_against(model.acoustic.encoder.config)
        if config.ctc_weight:
            model = JointModel(model, config.ctc_weight)
        return cls(task, model, tokenizer, config, chunking)

    @property
    def sample_rate(self):
        """Hz that arrays and streams must have."""
        return self.model.acoustic.config.sample_rate

    def __call__(self, audio, sample_rate=None, channel: int | None = None):
        """The n-best :class:`~espnet_speechllm_xl.decoding.results.Transcript` list, best first.

        Args:
            audio: a file name, or a float array (n,) in [-1, 1].
            sample_rate: Hz of the array; another rate than the model's is resampled.
            channel: which one (0-based) of several; None averages them.
        """
        return self.transcribe_batch([self.load(audio, sample_rate, channel)])[0]

    def load(self, audio, sample_rate=None, channel: int | None = None, notes: dict | None = None):
        """Samples (n,) at the model's rate; raises :class:`~espnet_speechllm_xl.corpus.audio.AudioError`.

        Arguments as in the call; ``notes`` takes the remarks on the audio (audio.py), None logs them.
        """
        if isinstance(audio, (str, Path)):
            return read_file(audio, self.sample_rate, channel=channel, notes=notes)
        if getattr(audio, "ndim", 1) == 2 and audio.shape[1] > audio.shape[0]:
            raise AudioError("unreadable", f"audio array of {tuple(audio.shape)}: give (samples,) or its transpose")
        rate = self.sample_rate if sample_rate is None else sample_rate
        if not rate > 0:
            raise AudioError("sample-rate", f"audio array at {rate} Hz: give the rate that it was recorded with")
        return conform(audio, rate, self.sample_rate, channel=channel, notes=notes)

    def transcribe_batch(self, recordings):
        """The n-best lists of several recordings (n,), decoded together; each as if alone."""
        if not recordings:
            return []
        return self.task.transcribe(self.model, self.tokenizer, self.chunking, self.search, recordings)

    def stream(self, search=None, chunk_size=None, context=None, **stream_conf):
        """A :class:`~espnet_speechllm_xl.decoding.streams.Stream` for audio that is still arriving.

        Args:
            search: "chunk_sync" or "greedy"; None: this object's, chunk_sync in place of alsd.
            chunk_size, context: seconds, in place of this object's.
            stream_conf: fields of :class:`~espnet_speechllm_xl.config.StreamConfig`.

        Raises:
            ConfigError: an unknown field, the search "alsd", which needs all audio before the first word, or a
                model without chunks.
            UserError: a duration off the grid of frames and chunks.
        """
        if self.chunking is None:
            raise ConfigError(
                f"a model of task '{self.task.name}' decodes whole recordings only: a live stream needs one that "
                "writes chunk by chunk"
            )
        chunking = _rechunk(self.chunking, chunk_size, context)
        config = from_dict(StreamConfig, stream_conf, "stream_conf")
        search = search or live_method(self.search.method)
        return Stream(self.model, self.tokenizer, chunking, dataclasses.replace(self.search, method=search), config)


def _own_search(directory: Path, args: argparse.Namespace, model: torch.nn.Module, given: dict) -> dict:
    """The model's own fields of :class:`SearchConfig`, without those that are ``given`` otherwise.

    Raises ConfigError naming the model's file where they are bad.
    """
    # An aligner of before it could be decoded has no settings for that.
    method = getattr(args, "search", find_task(args.task).search_choices.default)
    settings = {**getattr(args, "search_conf", {}), "method": method}
    settings = {name: value for name, value in settings.items() if name not in given}
    try:
        if from_dict(SearchConfig, settings, "search_conf").ctc_weight:
            check_model(model)
    except ConfigError as error:
        raise ConfigError(f"{directory / CONFIG}: {error}: restore it or train again") from error
    return settings


def _rechunk(chunking, chunk_size, context):
    """``chunking`` with a user's chunk size and context in seconds; a context that is not given keeps its length."""
    if chunking is None and (chunk_size, context) != (None, None):
        raise ConfigError("this model has no chunks: leave out the chunk size and the context")
    if chunk_size is not None:
        chunking = chunking.resized(timeline.frames_from_seconds(chunk_size, "chunk size"))
    if context is not None:
        chunking = dataclasses.replace(chunking, context=timeline.chunks_from_seconds(context, chunking.chunk))
    return chunking

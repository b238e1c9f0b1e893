"""What a system is: its settings, how its model is made of them, and how it decodes.

Training is base_task.py's: it makes an ESPnet task of a system.  ESPnet's training takes seconds to import, so nothing
that a trained model needs imports it.
"""

import abc
import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy.typing as npt
from torch import Tensor, nn

from espnet_speechllm_xl.config import (
    AugmentConfig,
    ChunkingConfig,
    ConcatConfig,
    FeatureConfig,
    LossConfig,
    SearchConfig,
    SpecAugmentConfig,
)
from espnet_speechllm_xl.decoding.results import Transcript
from espnet_speechllm_xl.decoding.searches import SEARCHES
from espnet_speechllm_xl.decoding.streams import transcribe
from espnet_speechllm_xl.model.audio_to_frames import Acoustic
from espnet_speechllm_xl.model.emformer import EmformerEncoder
from espnet_speechllm_xl.model.stream_encoder import StreamEncoder
from espnet_speechllm_xl.settings import ConfigError, check_mapping, from_dict, shown
from espnet_speechllm_xl.tokenization import Tokenizer

if TYPE_CHECKING:  # it imports ESPnet's training
    from espnet_speechllm_xl.systems.base_task import SpeechTask


Part = TypeVar("Part", bound=Callable)


@dataclasses.dataclass(frozen=True)
class Choices(Generic[Part]):
    """Classes from which an option chooses by their names: ``--encoder NAME``, with its settings ``--encoder_conf``."""

    name: str
    classes: Mapping[str, Part]
    default: str


encoder_choices: Choices[type[StreamEncoder]] = Choices("encoder", {"emformer": EmformerEncoder}, default="emformer")


class System(abc.ABC):
    """Base of the systems; a subclass names itself and its settings, builds the model and says how it decodes."""

    name: ClassVar[str]  # written to config.yaml as its task
    criterion: ClassVar[tuple[str, str, str]]  # by which epochs are chosen: set, statistic, "min" or "max"
    sections: ClassVar[dict[str, type]] = {
        "features_conf": FeatureConfig,
        "specaug_conf": SpecAugmentConfig,
        "concat_conf": ConcatConfig,
        "augment_conf": AugmentConfig,
    }
    part_choices: ClassVar[list[Choices]] = [encoder_choices]  # parts of the model
    part_sections: ClassVar[dict[str, type]] = {}  # further sections: keyword arguments of these classes of ESPnet's
    search_choices: ClassVar[Choices]  # the ways to decode
    word_times = True  # whether decoding tells when a word was said
    needs_alignment = False  # whether training needs the end of every character

    @classmethod
    @abc.abstractmethod
    def build_model(cls, args: argparse.Namespace) -> nn.Module:
        """Make the model of ``args``, config.yaml; write the settings that it lacks, the defaults, into it."""

    @staticmethod
    @abc.abstractmethod
    def transcribe(
        model: Any,  # noqa: ANN401  # the system's
        tokenizer: Tokenizer,
        chunking: Any,  # noqa: ANN401  # ChunkingConfig or None
        search_config: SearchConfig,
        recordings: Sequence[npt.ArrayLike | Tensor],
    ) -> list[list[Transcript]]:
        """Return the n-best list of each recording.

        Args:
            model: of this system, in evaluation mode.
            tokenizer: of the model.
            chunking: of the decoding; None for a model without chunks.
            search_config: its method is one of ``search_choices``.
            recordings: samples (n,) of each, float in [-1, 1] at the model's rate.

        Raises:
            AudioError: the samples of a recording cannot be used.
        """

    @classmethod
    def task(cls) -> "type[SpeechTask]":
        """Return the ESPnet task that trains the system."""
        from espnet_speechllm_xl.systems.base_task import espnet_task

        return espnet_task(cls)

    @classmethod
    def task_by_name(cls, name: str) -> "type[SpeechTask]":
        """Return the task for the name that it has in the system's module, of which this is ``__getattr__``.

        Raises:
            AttributeError: ``name`` is another one.
        """
        if name != f"{cls.__name__.removesuffix('System')}Task":
            raise AttributeError(f"module {cls.__module__!r} has no attribute {name!r}")
        return cls.task()

    @classmethod
    def section(cls, args: argparse.Namespace, name: str) -> Any:  # noqa: ANN401  # of the class in ``sections``
        """Return one ``*_conf`` section as its dataclass."""
        return from_dict(cls.sections[name], getattr(args, name), name)

    @classmethod
    def check_sections(cls, args: argparse.Namespace) -> None:
        """Raise ConfigError for a section that is no mapping, or a part of the model that there is not.

        Sections without entries become empty ones.
        """
        for name, value in vars(args).items():
            if name.endswith("_conf"):
                setattr(args, name, check_mapping({} if value is None else value, name))
        for choices in (*cls.part_choices, cls.search_choices):
            name = getattr(args, choices.name, choices.default)  # an old aligner has no search
            if name not in list(choices.classes):
                raise ConfigError(f"{choices.name} {shown(name)}: use one of {', '.join(choices.classes)}")

    @classmethod
    def build_acoustic(cls, args: argparse.Namespace) -> Acoustic:
        """Make features, normalisation and encoder.

        It also completes our sections in ``args``, which becomes config.yaml, so that later defaults do not change a
        trained model.
        """
        if args.normalize != "global_mvn":
            raise ConfigError(
                f"normalize: {args.normalize}: a stream cannot know the mean of an utterance that is still being "
                "spoken; use global_mvn (statistics of the training set)"
            )
        for name in cls.sections:
            setattr(args, name, dataclasses.asdict(cls.section(args, name)))
        acoustic = Acoustic(
            cls.section(args, "features_conf"),
            cls.section(args, "specaug_conf"),
            encoder_choices.classes[args.encoder],
            args.encoder_conf,
            stats_file=args.stats_file,
        )
        args.encoder_conf = dataclasses.asdict(acoustic.encoder.config)
        return acoustic


class ChunkwiseSystem(System):
    """Base of the systems that write chunk by chunk; a subclass names its model and the decoders that this can have."""

    criterion = ("valid", "acc_text", "max")
    sections = {**System.sections, "chunking_conf": ChunkingConfig, "loss_conf": LossConfig}
    search_choices = Choices("search", SEARCHES, default="alsd")
    needs_alignment = True
    transcribe = staticmethod(transcribe)
    model_class: ClassVar[Callable[..., nn.Module]]  # called with acoustic front, decoder and these sections
    model_sections: ClassVar[tuple[str, ...]] = ("chunking_conf", "loss_conf")
    decoder_choices: ClassVar[Choices]

    def __init_subclass__(cls) -> None:
        cls.part_choices = [encoder_choices, cls.decoder_choices]

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> nn.Module:
        """Make the model of ``args``; see :meth:`System.build_model`."""
        acoustic = cls.build_acoustic(args)
        decoder = cls.decoder_choices.classes[args.decoder](len(args.token_list), **args.decoder_conf)
        args.decoder_conf = dataclasses.asdict(decoder.config)
        return cls.model_class(acoustic, decoder, *(cls.section(args, name) for name in cls.model_sections))

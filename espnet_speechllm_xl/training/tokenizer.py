"""Makes the tokenizer of a recipe: trains a sentencepiece one, or copies a Hugging Face one."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_speechllm_xl.corpus.kaldi import read_table
from espnet_speechllm_xl.corpus.transcripts import case_differences, losses, remarks
from espnet_speechllm_xl.errors import UserError
from espnet_speechllm_xl.experiment import CTC_TOKENIZER, SENTENCEPIECE, TOKENIZER
from espnet_speechllm_xl.files import atomic_path, atomic_write, copy_file, naming, temporary_folder
from espnet_speechllm_xl.tokenization import CHARACTERS, HuggingFaceTokenizer, Tokenizer, load_tokenizer, normalise

WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx")


@dataclass(frozen=True)
class TokenizerRecipe:
    """The settings of a tokenizer to make.

    Attributes:
        kind: "bpe", "unigram", "char", or "hf" for a Hugging Face tokenizer.
        vocab_size: tokens of "bpe" and "unigram".
        hf: directory of the Hugging Face tokenizer.
        symbols: texts that are one token each.
        lower_case: whether "hf" takes capitals as small letters.
    """

    kind: str = "bpe"
    vocab_size: int = 100
    hf: str | None = None
    symbols: Sequence[str] = ()
    lower_case: bool = False


def make_tokenizer(text: str, out: Path, recipe: TokenizerRecipe) -> Tokenizer:
    """Write ``tokenizer.model``, or the directory ``tokenizer``, and return it.

    Args:
        text: Kaldi text file of the training set.
        out: directory.
        recipe: how it is made.

    Raises:
        UserError: the text, the recipe or the Hugging Face tokenizer cannot be used.
    """
    if recipe.lower_case and recipe.kind != "hf":
        raise UserError(f"--lower-case is of --type hf; for {recipe.kind}, format the texts with --cleaner lower")
    sentences = list(filter(None, map(normalise, read_table(text, empty_values=True).values())))
    if recipe.kind == "hf":
        return _take_hugging_face(sentences, out, recipe)
    if not sentences:
        raise UserError(f"{text} has no transcripts: run the format stage")
    with atomic_path(out / SENTENCEPIECE) as temporary:
        try:
            _train(sentences, temporary, recipe)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"--vocab-size {recipe.vocab_size} does not fit {text}: {reason}") from error
    return load_tokenizer(out / SENTENCEPIECE)


def keep_ctc_tokenizer(file: str | Path, directory: Path) -> None:
    """Copy the tokenizer of a CTC head's own tokens into the directory of the training, where decoding finds it."""
    copy_file(file, directory / CTC_TOKENIZER)


def write_token_list(path: Path, tokenizer: Tokenizer) -> None:
    """Write the tokens, one a line, also the pieces of some LLMs that are or hold an end of line."""
    with atomic_write(path) as stream:
        stream.writelines(piece.replace("\n", "\\n").replace("\r", "\\r") + "\n" for piece in tokenizer.pieces)


def remarks_on_texts(
    text: str, others: Sequence[str], tokenizer: Tokenizer, recipe: TokenizerRecipe, rare: int
) -> list[str]:
    """Return what stands out in the texts of all sets, and what the tokenizer makes of them, in lines.

    Args:
        text: Kaldi text file of the training set.
        others: Kaldi text files of other sets; missing files are left out.
        tokenizer: made by ``recipe``.
        recipe: how it was made.
        rare: a symbol that occurs fewer times is named; 0: nothing is said of the texts themselves.
    """
    texts = {file: read_table(file, empty_values=True) for file in (text, *filter(os.path.exists, others))}
    lines = remarks(text, texts[text], rare, recipe.symbols) + case_differences(texts) if rare else []
    for file, table in texts.items():
        if file != text or recipe.kind == "hf":  # the others are made of that text
            lines += losses(file, table, tokenizer)
    return lines


def _take_hugging_face(sentences: Sequence[str], out: Path, recipe: TokenizerRecipe) -> Tokenizer:
    if not recipe.hf:
        raise UserError("--type hf needs --hf DIR")
    source = Path(recipe.hf)
    if not source.is_dir():
        raise UserError(f"--hf {source} is no directory: give that of a Hugging Face tokenizer")
    tokenizer = load_tokenizer(source)
    lacking = [symbol for symbol in recipe.symbols if symbol not in tokenizer.pieces]
    if lacking:
        raise UserError(f"--hf {source} has no token '{lacking[0]}' of --nlsyms: add it there (add_tokens)")
    lowered = tokenizer if recipe.lower_case and isinstance(tokenizer, HuggingFaceTokenizer) else None
    if (out / TOKENIZER).resolve() != source.resolve():
        _copy_tokenizer(source, out / TOKENIZER, lowered)
    text = "".join(sentences)
    with atomic_write(out / TOKENIZER / CHARACTERS) as stream:
        stream.write("".join(sorted(set(text.lower() if recipe.lower_case else text))))
    made = load_tokenizer(out / TOKENIZER)
    if recipe.lower_case and not made.lower_case:
        raise UserError(f"--hf {source}: its text could not be put in small letters: leave out --lower-case")
    return made


def _copy_tokenizer(source: Path, target: Path, lowered: HuggingFaceTokenizer | None) -> None:
    """Copy a checkpoint without its weights and folders, where other forms of them lie; the copy appears whole.

    Args:
        source: the checkpoint.
        target: the copy.
        lowered: its tokenizer, if the copy shall take capitals as small letters; None: the copy is the same.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with naming(target), temporary_folder(f".{target.name}.", target.parent) as folder:
        for file in source.iterdir():
            if file.is_file() and not file.name.endswith(WEIGHTS):
                with open(file, "rb") as original, open(folder / file.name, "wb") as copy:
                    shutil.copyfileobj(original, copy)
        if lowered:
            _lower_copy(lowered, folder)
        folder.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)  # files of another one would be taken for its own
        os.replace(folder, target)


def _lower_copy(tokenizer: HuggingFaceTokenizer, folder: Path) -> None:
    """Make the tokenizer in ``folder`` take capitals as small letters."""
    tokenizer.save_lower_case(folder / "tokenizer.json")
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    # Classes of a family (GPT2Tokenizer, Qwen2Tokenizer) have normalisers of their own; this one takes the file's.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings.pop("auto_map", None)
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _train(sentences: Sequence[str], path: Path, recipe: TokenizerRecipe) -> None:
    """Train a sentencepiece model of normalised texts; raises RuntimeError where the vocabulary does not fit them."""
    import sentencepiece

    # sentencepiece ignores its name for unknown symbols, "<unk>", where it stands in the text: then it gets another.
    taken = [*sentences, *recipe.symbols]
    names = [name for name in ("<unk>", "\u2047", "<unknown>") if not any(name in line for line in taken)]
    characters = len(set("".join(sentences)))
    other_name = {} if names[0] == "<unk>" else {"unk_piece": names[0]}
    with open(path, "wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=recipe.kind,
            vocab_size=recipe.vocab_size if recipe.kind != "char" else characters + 2 + len(recipe.symbols),
            character_coverage=1.0,
            normalization_rule_name="identity",  # NFC is done already; NFKC would change what is scored
            hard_vocab_limit=recipe.kind != "char",
            **other_name,
            user_defined_symbols=recipe.symbols,
            bos_id=-1,
            eos_id=-1,
            # longer ones would be left out; it takes no less than 10
            max_sentence_length=max(10, *(len(sentence.encode()) + 1 for sentence in sentences)),
            minloglevel=2,
        )

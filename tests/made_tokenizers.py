"""Real tokenizers of every kind, trained on the sentences of conftest.py (its fixture ``tokenizers``)."""

KINDS = ["bpe", "unigram", "char", "bytes", "gpt2", "metaspace"]


def save_hugging_face(path, sentences, byte_level, unknown="<unk>", normalizer=None):
    """A small fast tokenizer in ``path``: byte-level BPE as GPT-2's, or BPE with metaspace.

    The latter has an ``unknown`` token, or, with None, leaves out what it does not know.  A ``normalizer`` of the
    library tokenizers changes texts first.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if byte_level:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        options = {}
    else:
        tokenizer = Tokenizer(models.BPE(unk_token=unknown, fuse_unk=True) if unknown else models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        special = {"unk_token": unknown} if unknown else {}
        trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=[*special.values()], show_progress=False)
        options = special
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(sentences, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options).save_pretrained(path)
    return path

"""Prompts of training: some words of an example among words of other texts, so that names given in decoding help.

An example has a prompt or none.  Words that the example's text lacks keep the decoder from writing what it only read;
examples without a prompt keep it able to go without.  No example becomes longer than ``distance`` by its prompt: its
last chunks would be farther from the prompt than in a stream.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from espnet_speechllm_xl.config import TextPromptConfig
from espnet_speechllm_xl.tokenization import Tokenizer, normalise

SAMPLE = 1000  # words by which the usual length of words is found


class PromptMaker:
    """Draws prompts; picklable for loader workers.

    Args:
        config: how long prompts are.
        tokenizer: of the model.
        texts: of the training, whose words are drawn.
    """

    def __init__(self, config: TextPromptConfig, tokenizer: Tokenizer, texts: Iterable[str]) -> None:
        self.config, self._tokenizer = config, tokenizer
        self._words = np.array(sorted({word for text in texts for word in normalise(text).split()}))

    def full_length(self) -> int:
        """Return the tokens of a prompt of as many words as there may be, if these are of mean length."""
        sample = self._words[:: max(1, len(self._words) // SAMPLE)].tolist()
        tokens, _ = self._tokenizer.encode(" ".join(sample))
        return math.ceil(self.config.words * len(tokens) / max(1, len(sample)))

    def draw(self, seed: int | None, text: Sequence[int], room: int) -> npt.NDArray[np.int64]:
        """Return the tokens (P,) of a prompt for an example, without a ``seed`` none.

        Args:
            seed: of the random numbers.
            text: token ids of the example.
            room: tokens at most; words beyond are left out.
        """
        if seed is None:
            return np.zeros(0, dtype=np.int64)
        rng = np.random.default_rng(seed)
        own = sorted(set(self._tokenizer.decode(text).split()))
        count = int(rng.integers(1, self.config.words + 1))
        taken = rng.permutation(own)[: int(rng.integers(0, min(self.config.own_words, count) + 1))].tolist()
        others = rng.choice(self._words, count - len(taken)).tolist()
        words = rng.permutation([*taken, *(word for word in others if word not in own)]).tolist()
        tokens, _ = self._tokenizer.encode(" ".join(words))
        while len(tokens) > room:
            words.pop()
            tokens, _ = self._tokenizer.encode(" ".join(words))
        return np.array(tokens, dtype=np.int64)

"""Prompts: text before the first chunk of a recording or stream: names to expect, the subject, what was said before.

All hypotheses begin with the past of a decoder that has read the prompt, so a search knows nothing of it.
"""

from collections.abc import Sequence

from torch import nn

from espnet_speechllm_xl.model.chunk_model import ChunkModel
from espnet_speechllm_xl.model.decoder_steps import ChunkDecoder, Past, Request, Result
from espnet_speechllm_xl.settings import ConfigError
from espnet_speechllm_xl.tokenization import Tokenizer, normalise


class PromptedDecoder(ChunkDecoder[Past]):
    """A decoder that has read a prompt before the first chunk.

    Args:
        decoder: computes everything.
        prompt: tokens.
    """

    def __init__(self, decoder: ChunkDecoder, prompt: Sequence[int]) -> None:
        self._decoder, self._prompt, self.eoc = decoder, prompt, decoder.eoc

    def initial_past(self, context: int | None) -> Past:
        """Return the past behind the prompt; see :class:`ChunkDecoder`."""
        return self._decoder.prompted_past(context, self._prompt)

    def extend(self, requests: Sequence[Request[Past]]) -> list[Result[Past]]:
        """Advance hypotheses; see :class:`ChunkDecoder`."""
        return self._decoder.extend(requests)


class PromptedModel(nn.Module):
    """A :class:`ChunkModel` whose decoder has read a prompt; its requests may be computed with the model's own."""

    def __init__(self, model: ChunkModel, prompt: Sequence[int]) -> None:
        super().__init__()
        self.acoustic, self.ctc, self.chunking = model.acoustic, model.ctc, model.chunking
        self.projection = model.projection
        self.decoder = PromptedDecoder(model.decoder, prompt)


def prompt_tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return the tokens of a prompt, also of one that holds halves of characters, as a client may send them."""
    return tokenizer.encode(normalise(prompt.encode(errors="replace").decode()))[0]


def with_prompt(model: ChunkModel, tokenizer: Tokenizer, prompt: str) -> ChunkModel:
    """Return the model for recordings with a prompt; the model itself for one without text.

    Raises:
        ConfigError: the model takes no prompt, or no prompt of this length.
    """
    tokens, most = prompt_tokens(tokenizer, prompt), model.decoder.most_prompt_tokens
    if not tokens:
        return model
    if not most:
        raise ConfigError(
            "this model was trained without prompts (SpeechLLM-XL's text_prompt_conf probability): leave the prompt out"
        )
    if len(tokens) > most:
        raise ConfigError(
            f"the prompt has {len(tokens)} tokens: no chunk of this model begins more than {most} inputs behind a "
            "prompt's start (text_prompt_conf distance): shorten the prompt"
        )
    return PromptedModel(model, tokens)

"""CTC-prompt-LM (Tsunoo et al. 2024, arXiv 2406.16107): a decoder-only LM prompted block by block by CTC's findings.

    frames of a block --CTC--> those not blank --.
              '--mean--> GRU over the blocks -----'--> prompts of the block: a c [0] | b [1] | ...

The LM reads prompts and text, and predicts the text's next token or ``$``, its end as far as the prompts go.  With
three blocks, letters for CTC prompts, [k] for the context embedding of block k, digits for tokens, ``prompt_conf
layout`` is one of::

    prompts_first   training, cut after block 1      a c [0] b [1] 1 2
                    target                           .  .  .  . 1  2 $
                    decoding, block 0                a c [0] 1
                              block 1                a c [0] b [1] 1 2
                              block 2                a c [0] b [1] d e [2] 1 2 3

    interleaved     training, cut after block 1      a c [0] 1 b [1] 2
                    target                           .  . 1  $ .  2  $
                    decoding, all blocks             a c [0] 1 b [1] 2 d e [2] 3

From the paper come

- the CTC prompts: frames whose most probable class is not blank;
- one context embedding a block, which is inherited from block to block;
- training on prompts that are cut at a random length, with the text that CTC aligns to them;
- the fusion of CTC and LM scores where a block ends.

This implementation differs:

- The encoder is the Emformer of the other systems, and a block is a chunk of ``chunking_conf``.
- The Emformer has no context embedding; here it is a GRU over the means of the blocks' frames.
- Prompts are cut between blocks.
- CTC's score (ctc_prefix_score.py) is of the block's own frames and tokens, and only moves ``$`` against the tokens.

``prompts_first`` is the prefix of prompts that the paper trains on.  A new block moves the text: the prompts' keys and
values stay, and the call that reads the new prompts reads the text so far again.  The cost of a recording grows with
the square of its length, and a stream's memory with its length.  Learning takes long, because nothing but their content
says which prompts a token belongs to.

``interleaved`` is an addition.  Its steps are incremental.  A ``$`` is learnt at every block; the cut only says where a
training sequence ends.  ``chunking_conf context`` may bound what the LM sees.

Shape legend: ``B`` batch, ``T`` frames, ``E`` their size, ``K`` blocks, ``P`` prompts, ``U`` tokens, ``D`` LM width,
``V`` tokenizer size.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from espnet_speechllm_xl import timeline
from espnet_speechllm_xl.config import ChunkingConfig, LossConfig
from espnet_speechllm_xl.model import cache
from espnet_speechllm_xl.model.audio_to_frames import Acoustic
from espnet_speechllm_xl.model.ctc import CTCHead
from espnet_speechllm_xl.model.ctc_prefix_score import Prefix
from espnet_speechllm_xl.model.decoder_steps import ChunkDecoder, Past, Request, Result, make_results
from espnet_speechllm_xl.model.llm import Decoder
from espnet_speechllm_xl.model.losses import add_ctc_loss, text_loss
from espnet_speechllm_xl.model.sequence import DecoderSequence, check_ends, gather_inputs, interleave, without_padding
from espnet_speechllm_xl.model.visibility import PADDING
from espnet_speechllm_xl.settings import ConfigError, require
from espnet_speechllm_xl.systems.base_model import AcousticModel, Trained
from espnet_speechllm_xl.systems.base_system import ChunkwiseSystem
from espnet_speechllm_xl.systems.speechllm_xl import SpeechLLMXLSystem


@dataclass(frozen=True)
class PromptConfig:
    """CTC-prompt-LM (Tsunoo et al. 2024, a baseline): prefix prompts in training, the end of a chunk in decoding."""

    layout: str = "prompts_first"  # of LM inputs: "prompts_first", then all text; or "interleaved" chunk by chunk
    prefix_probability: float = 0.5  # share of the training prompts that are cut after a random chunk
    prefixes: int = 1  # prompts that training cuts of each utterance in a batch, each with its text
    end_ctc_weight: float = 0.3  # CTC's share in the log-probability that a chunk's text ends; 0: the LM alone

    def __post_init__(self) -> None:
        require(
            self.layout in ("prompts_first", "interleaved"),
            f"prompt layout '{self.layout}': use 'prompts_first' or 'interleaved'",
        )
        for name in ("prefix_probability", "end_ctc_weight"):
            share = getattr(self, name)
            require(0 <= share <= 1, f"prompt {name} {share} is not in [0, 1]")
        require(self.prefixes >= 1, f"prompt prefixes {self.prefixes} must be at least 1")

    def check_against(self, chunking: ChunkingConfig, loss: LossConfig) -> None:
        """Raise ConfigError where other settings do not go with this model."""
        require(loss.ctc_weight > 0, "loss_conf ctc_weight: the prompts are found by CTC: set it above 0")
        require(
            loss.ctc_tokenizer is None,
            "loss_conf ctc_tokenizer: the prompts are found by the decoder's tokens: set null",
        )
        require(
            chunking.context is None or self.layout == "interleaved",
            f"chunking_conf context {chunking.context}: the prompts of all chunks stay visible: set it to null, or "
            "prompt_conf layout to interleaved",
        )
        require(chunking.train_chunks is None, "chunking_conf train_chunks: chunks have one size: leave it at null")
        require(
            chunking.train_look_aheads is None, "chunking_conf train_look_aheads: there is one: leave it at null"
        )
        require(
            chunking.unit == "token" or self.end_ctc_weight == 0,
            "prompt_conf end_ctc_weight: CTC wants the first half of a word in the chunk where it was said: set it "
            "to 0, or chunking_conf unit to token",
        )
        require(
            chunking.delay == 0 or self.end_ctc_weight == 0,
            "prompt_conf end_ctc_weight: CTC wants a token in the chunk where it was said, chunking_conf delay in a "
            "later one: set one of them to 0",
        )


@dataclass(frozen=True)
class Prompts:
    """The prompts of a batch, block after block, padded at the end, and the state for the next blocks."""

    vectors: Tensor  # (B, P, D)
    block: Tensor  # (B, P) block of each; where padded, more than there are
    log_probs: Tensor  # (B, T, V + 1) of CTC
    memory: Tensor  # (1, B, E) of the GRU after the last block


@dataclass(frozen=True)
class PromptPast(Past):
    """The past of one hypothesis: prompts and text."""

    lm: cache.CachedPast  # of its prompts, then its text
    prompts: int = 0  # how many of these inputs are prompts
    tokens: tuple[int, ...] = ()  # its text, where that will be read again
    memory: Tensor | None = None  # (1, 1, E) of the GRU over the blocks
    spelled: Prefix | None = None  # its tokens of the current block, to CTC; None where CTC has no say

    def alone(self) -> "PromptPast":
        """Return a copy that does not hold the buffer of the batch it came from."""
        return dataclasses.replace(self, lm=self.lm.alone())


class PromptDecoder(nn.Module, ChunkDecoder[PromptPast]):
    """Prompts from encoder frames, the LM behind them, and the steps that a search asks for.

    Args:
        lm: its ``$`` ends the text of the prompts so far.
        frame_size: E.
        config: layout, cuts, and CTC's share.
    """

    def __init__(self, lm: Decoder, frame_size: int, config: PromptConfig) -> None:
        super().__init__()
        self.lm = lm
        self.eoc = lm.eoc
        self.ctc = CTCHead(frame_size, lm.eoc)
        self.frame_prompt = nn.Linear(frame_size, lm.dim)
        self.memory = nn.GRU(frame_size, frame_size, batch_first=True)
        self.context_prompt = nn.Linear(frame_size, lm.dim)
        self.config = config

    def prompts(
        self, frames: Tensor, counts: Tensor, block_size: int | None, memory: Tensor | None = None
    ) -> Prompts:
        """Return the prompts of whole utterances, or of the next block of a stream.

        Args:
            frames: (B, T, E)
            counts: (B,) frames.
            block_size: frames of a block; None: one block.
            memory: (1, B, E) after the blocks before; None: these are the first.
        """
        log_probs = self.ctc(frames)
        index = torch.arange(frames.shape[1], device=frames.device)[None]
        real, block = index < counts[:, None], timeline.chunk_of_frame(index, block_size)
        spoken = real & (log_probs.argmax(-1) != self.ctc.blank)
        blocks = timeline.num_chunks(counts, block_size)[:, None]
        context = torch.arange(int(blocks.max()), device=frames.device)[None]
        means = _block_means(frames, real[:, None] & (block[:, None] == context[:, :, None]))
        embeddings, memory = self.memory(means, memory)
        vectors = torch.cat([self.frame_prompt(frames), self.context_prompt(embeddings)], dim=1)  # (B, T + K, D)

        # A block's CTC prompts come first, its context embedding is their last; sorting stably keeps the order.
        behind = 2 * context.shape[1]
        keys = [torch.where(spoken, 2 * block, behind), torch.where(context < blocks, 2 * context + 1, behind)]
        key, source = torch.cat(keys, dim=1).sort(dim=1, stable=True)
        longest = int((key < behind).sum(1).max())
        key, source = key[:, :longest], source[:, :longest]
        vectors = vectors.gather(1, source[:, :, None].expand(-1, -1, vectors.shape[2]))
        return Prompts(vectors, key // 2, log_probs, memory)

    def initial_past(self, context: int | None) -> PromptPast:
        """Return the past of a hypothesis before any block; see :class:`ChunkDecoder`.

        Raises:
            ConfigError: the context is bounded, but all prompts come before the text.
        """
        if context is not None and self.config.layout == "prompts_first":
            raise ConfigError("this model sees the prompts of all chunks: leave out the context, or make it inf")
        return PromptPast(self.lm.initial_past(context))

    @torch.no_grad()
    def extend(self, requests: Sequence[Request[PromptPast]]) -> list[Result[PromptPast]]:
        """Advance hypotheses; see :class:`ChunkDecoder`; frames are the encoder's."""
        blocks = {}  # the hypotheses of a stream share its blocks
        for request in requests:
            if request.frames is not None and id(request.frames) not in blocks:
                frames, counts = request.frames[None], torch.tensor([len(request.frames)], device=request.frames.device)
                blocks[id(request.frames)] = self.prompts(frames, counts, None, request.past.memory)
        steps = [
            self._token(request) if request.frames is None else self._block(request, blocks[id(request.frames)])
            for request in requests
        ]
        results = self.lm.extend([step for step, _ in steps])
        pasts = [dataclasses.replace(past, lm=result.past) for result, (_, past) in zip(results, steps, strict=True)]
        log_probs = [self._fused(result.log_probs, past) for result, past in zip(results, pasts, strict=True)]
        return make_results(pasts, torch.stack(log_probs))

    def _token(self, request: Request[PromptPast]) -> tuple[Request[cache.CachedPast], PromptPast]:
        """Return the LM's step for one more token, and the past it leads to, whose ``lm`` is still the old one."""
        past, token = request.past, request.token
        assert token is not None
        tokens = (*past.tokens, token) if self.config.layout == "prompts_first" else ()
        spelled = past.spelled and past.spelled.extend(token)
        step = Request(past.lm, request.chunk_id, token=token)
        return step, dataclasses.replace(past, tokens=tokens, spelled=spelled)

    def _block(
        self, request: Request[PromptPast], prompts: Prompts
    ) -> tuple[Request[cache.CachedPast], PromptPast]:
        """Return the same for the prompts of a new block; where prompts go before the text, that is read again."""
        past, vectors = request.past, prompts.vectors[0]
        lm_past, inputs = past.lm, vectors
        if self.config.layout == "prompts_first":
            text = self.lm.embed(torch.tensor(past.tokens, dtype=torch.long, device=vectors.device))
            lm_past, inputs = past.lm.first(past.prompts), torch.cat([vectors, text])
        spelled = Prefix.empty(prompts.log_probs[0]) if self.config.end_ctc_weight else None
        return (
            Request(lm_past, request.chunk_id, inputs),
            PromptPast(past.lm, past.prompts + len(vectors), past.tokens, prompts.memory, spelled),
        )

    def _fused(self, log_probs: Tensor, past: PromptPast) -> Tensor:
        """Return the LM's ``log_probs`` (V + 1,) with CTC's say about the end of the block."""
        if past.spelled is None:
            return log_probs
        return fuse_end(log_probs, past.spelled.end(), self.config.end_ctc_weight)


def _block_means(frames: Tensor, members: Tensor) -> Tensor:
    """Return the means (B, K, E) of frames (B, T, E) over the ``members`` (B, K, T) of each block; 0 if it is empty."""
    shares = members.to(frames.dtype) / members.sum(-1, keepdim=True).clamp(min=1)
    return shares @ frames


def fuse_end(log_probs: Tensor, end: Tensor, weight: float) -> Tensor:
    """Give CTC its share in the log-probability that a block's text ends.

    The log-probability of the end becomes the weighted mean of the LM's and CTC's.  The tokens share the rest as the LM
    would have it.  So the result is a distribution, and hypotheses that ended a block compare with the others.

    Args:
        log_probs: (V + 1,) the LM's; the last entry is the end.
        end: () CTC's log-probability of the end.
        weight: CTC's share, in 0 .. 1.

    Returns:
        (V + 1,) log-probabilities.
    """
    ended = (1 - weight) * log_probs[-1:] + weight * end.to(log_probs)
    tokens = log_probs[:-1] - log_probs[:-1].logsumexp(0) + torch.log(-torch.expm1(ended))
    return torch.cat([tokens, ended])


class CTCPromptLM(AcousticModel):
    """Encoder, prompts and LM.

    Args:
        acoustic: audio to encoder frames.
        lm: reads prompts and text.
        chunking: a chunk is a block.
        loss: label smoothing, and the weight of the CTC loss.
        prompt: layout, cuts, and CTC's share.

    Raises:
        ConfigError: some settings do not go together.
    """

    def __init__(
        self, acoustic: Acoustic, lm: Decoder, chunking: ChunkingConfig, loss: LossConfig, prompt: PromptConfig
    ) -> None:
        super().__init__()
        chunking.check_against(acoustic.encoder.config)
        prompt.check_against(chunking, loss)
        self.acoustic = acoustic
        self.projection = nn.Identity()  # prompts are made of whole blocks, by the decoder
        self.decoder = PromptDecoder(lm, acoustic.encoder.output_size(), prompt)
        self.chunking = chunking
        self.loss_config = loss
        self.prompt_config = prompt

    @property
    def ctc(self) -> CTCHead:
        """Return the CTC head, which tells word times as well."""
        return self.decoder.ctc

    def forward(
        self, speech: Tensor, speech_lengths: Tensor, text: Tensor, text_lengths: Tensor, ends: Tensor, **_: object
    ) -> Trained:
        """Return the cross-entropy per text and ``$`` target with CTC's loss, and statistics.

        Args:
            speech: (B, N) audio.
            speech_lengths: (B,) samples.
            text: (B, U) token ids.
            text_lengths: (B,)
            ends: (B, U) last aligned frame of each token (alignment.py).
        """
        chunking = self.chunking
        frames, counts = self.acoustic(speech, speech_lengths, chunking.look_ahead)
        tokens = without_padding(text)
        check_ends(counts, text_lengths, ends)
        prompts = self.decoder.prompts(frames, counts, chunking.chunk)
        blocks = timeline.num_chunks(counts, chunking.chunk)
        token_block = timeline.chunk_of_token(ends, chunking.chunk, chunking.delay, blocks[:, None])
        prefixes = self.prompt_config.prefixes if self.training else 1
        cut = self._draw_cut(blocks.repeat_interleave(prefixes))
        copied = (prompts.vectors, prompts.block, tokens, text_lengths, token_block)
        vectors, prompt_block, texts, lengths, text_block = (each.repeat_interleave(prefixes, 0) for each in copied)
        inputs, sequence = self._prefix(vectors, prompt_block, texts, lengths, text_block, cut[:, None])
        lm = self.decoder.lm
        hidden = lm(inputs, sequence.position, sequence.chunk_id, chunking.context)
        loss, accuracies, num_targets = text_loss(lm, hidden, sequence.target, self.loss_config)
        stats = {"loss_llm": loss.detach(), **accuracies}
        ctc_losses = self.ctc.loss(prompts.log_probs, counts, tokens, text_lengths)
        loss = add_ctc_loss(loss, prefixes * ctc_losses, num_targets, self.loss_config, stats)
        return self.espnet_result(loss, stats, num_targets)

    def _prefix(
        self,
        vectors: Tensor,
        prompt_block: Tensor,
        tokens: Tensor,
        text_lengths: Tensor,
        token_block: Tensor,
        cut: Tensor,
    ) -> tuple[Tensor, DecoderSequence]:
        """Return LM inputs (B, L, D) and their sequence: prompts and tokens of the first blocks.

        Args:
            vectors: (B, P, D) prompts.
            prompt_block: (B, P) block of each prompt.
            tokens: (B, U)
            text_lengths: (B,) tokens.
            token_block: (B, U) block of each token.
            cut: (B, 1) how many blocks.
        """
        real = torch.arange(tokens.shape[1], device=tokens.device) < text_lengths[:, None]
        prompt_kept, token_kept = prompt_block < cut, real & (token_block < cut)
        if self.prompt_config.layout == "prompts_first":  # all in one chunk, in which prompts come first
            prompt_block, token_block = torch.zeros_like(prompt_block), torch.zeros_like(token_block)
        sequence = interleave(
            torch.where(prompt_kept, prompt_block, PADDING),
            torch.where(token_kept, token_block, PADDING),
            tokens,
            self.decoder.eoc,
        )
        return gather_inputs(sequence, vectors, self.decoder.lm.embed(tokens)), sequence

    def _draw_cut(self, blocks: Tensor) -> Tensor:
        """Return how many (B,) of its ``blocks`` (B,) each prompt keeps: all; in training often fewer, 1 at least."""
        if not self.training:
            return blocks
        drawn = torch.rand(2, len(blocks), device=blocks.device)
        shorter = (1 + (drawn[0] * blocks).long()).minimum(blocks)
        return torch.where(drawn[1] < self.prompt_config.prefix_probability, shorter, blocks)


class CTCPromptLMSystem(ChunkwiseSystem):
    """Encoder, CTC prompts, LM (arXiv 2406.16107); data, LM and searches are those of the recogniser."""

    name = "ctc_prompt_lm"
    sections = {**ChunkwiseSystem.sections, "prompt_conf": PromptConfig}
    model_class = CTCPromptLM
    model_sections = (*ChunkwiseSystem.model_sections, "prompt_conf")
    decoder_choices = SpeechLLMXLSystem.decoder_choices


__getattr__ = CTCPromptLMSystem.task_by_name  # CTCPromptLMTask

if __name__ == "__main__":
    CTCPromptLMSystem.task().main()

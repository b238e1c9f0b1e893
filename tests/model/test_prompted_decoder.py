"""Prompts in the decoder: cached and evicted == one masked call; the distance in long streams; batches; the cost."""

import random

import checkpoints
import pytest
import torch
import torch.nn.functional as F

from espnet_speechllm_xl.model.attention import Attention
from espnet_speechllm_xl.model.decoder_steps import Request
from espnet_speechllm_xl.model.llm import Decoder
from espnet_speechllm_xl.model.visibility import PROMPT, attention_mask

VOCABULARY = 11
FAR = 10**6  # no stream of these tests is so long


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.4, max_position_embeddings=64,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def make_decoder(distance=FAR, **conf):
    torch.manual_seed(0)
    decoder = Decoder(VOCABULARY, **(conf or {"dim": 16, "layers": 3, "heads": 2, "ffn_dim": 24})).double().eval()
    decoder.prompt_distance = distance
    with torch.no_grad():
        for weight in decoder.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.4)
    return decoder


def draw_chunks(rng, count):
    """Chunks of a recording: frames (q, D) and tokens of each."""
    return [
        (torch.randn(rng.randint(1, 6), 16).double(), [rng.randrange(VOCABULARY) for _ in range(rng.randint(0, 4))])
        for _ in range(count)
    ]


def steps(past, chunks):
    """Decode given chunks: a generator of requests, which returns the log-probabilities of every step and the past."""
    given = []
    for k, (frames, tokens) in enumerate(chunks):
        for request in [{"frames": frames}, *({"token": token} for token in tokens)]:
            result = yield Request(past, k, **request)
            past = result.past
            given.append(result.log_probs)
    return torch.stack(given), past


def together(decoder, *generators):
    """Run generators of requests side by side, one batch a round; what they return, in order."""
    returned, wanted = {}, {index: next(generator) for index, generator in enumerate(generators)}
    while wanted:
        results = decoder.extend(list(wanted.values()))
        following = {}
        for index, result in zip(wanted, results, strict=True):
            try:
                following[index] = generators[index].send(result)
            except StopIteration as stop:
                returned[index] = stop.value
        wanted = following
    return [returned[index] for index in range(len(generators))]


def decode(decoder, context, prompt, chunks):
    past = decoder.prompted_past(context, prompt) if prompt else decoder.initial_past(context)
    return together(decoder, steps(past, chunks))[0]


class SlowAttention(Attention):
    """Every chunk sees the prompt, moved towards it once it begins more than ``distance`` behind the prompt's start."""

    def __init__(self, rotate, position, chunk_id, context, distance):
        self.rotate, self.position, self.chunk_id = rotate, position, chunk_id
        self.context, self.distance = context, distance

    def attend(self, layer, query, keys, values):
        found = torch.zeros_like(query)
        of_prompt = self.chunk_id[0] == PROMPT
        for k in self.chunk_id.unique().tolist():
            rows = self.chunk_id[0] == k
            moved = keys.clone()
            shift = max(0, int(self.position[0, rows].min()) - self.distance) if k >= 0 else 0
            if shift:
                moved[:, of_prompt] = self.rotate(keys[:, of_prompt], shift)
            ids = self.position[:, rows], self.chunk_id[:, rows], self.position, self.chunk_id
            mask = attention_mask(*ids, self.context, query.dtype)
            every = [each.transpose(1, 2) for each in (query[:, rows], moved, values)]
            found[:, rows] = F.scaled_dot_product_attention(*every, attn_mask=mask).transpose(1, 2)
        return found


@torch.no_grad()
def whole(decoder, context, prompt, chunks, distance=None):
    """The log-probabilities of every step in one call without a cache; with a ``distance``, by the slow attention."""
    pieces, ids, scored = [], [], []
    if prompt:
        pieces, ids = [decoder.embed(torch.tensor([prompt]))[0]], [PROMPT] * len(prompt)
    for k, (frames, tokens) in enumerate(chunks):
        pieces += [frames, decoder.embed(torch.tensor([tokens]).long())[0]]
        last = len(ids) + len(frames) - 1
        ids += [k] * (len(frames) + len(tokens))
        scored += range(last, last + len(tokens) + 1)
    inputs, chunk_id, position = torch.cat(pieces)[None], torch.tensor([ids]), torch.arange(len(ids))[None]
    if distance is None:
        hidden = decoder(inputs, position, chunk_id, context)
    else:
        rotate = decoder.network.rebase.rotate
        hidden = decoder.network.run(inputs, position, SlowAttention(rotate, position, chunk_id, context, distance))
    return decoder.logits(hidden)[0, scored].log_softmax(-1)


@pytest.mark.parametrize("context", [0, 1, 3, None])
@pytest.mark.parametrize("length", [0, 1, 7])
def test_cached_and_evicted_equals_full(context, length):
    rng = random.Random(f"{context} {length}")
    decoder, prompt = make_decoder(), [rng.randrange(VOCABULARY) for _ in range(length)]
    chunks = draw_chunks(rng, 12)
    found, past = decode(decoder, context, prompt, chunks)
    assert (found - whole(decoder, context, prompt, chunks)).abs().max() < 1e-11
    if context is not None:
        assert past.length < past.next_position  # something was evicted
    if length:
        other = [(prompt[0] + 1) % VOCABULARY, *prompt[1:]]
        changed = (decode(decoder, context, other, chunks)[0] - found).abs().amax(1)
        assert (changed > 1e-6).all(), "every chunk sees the prompt"


@pytest.mark.parametrize("context", [0, 2, None])
def test_with_and_without_prompt_in_one_batch_as_if_alone(context):
    rng, decoder = random.Random(3), make_decoder(distance=20)
    prompts = [[], [1, 2, 3], [4] * 9, [5]]
    recordings = [draw_chunks(rng, count) for count in (9, 12, 4, 7)]
    alone = [decode(decoder, context, prompt, chunks)[0] for prompt, chunks in zip(prompts, recordings, strict=True)]
    pasts = [decoder.prompted_past(context, prompt) if prompt else decoder.initial_past(context) for prompt in prompts]
    found = together(decoder, *(steps(past, chunks) for past, chunks in zip(pasts, recordings, strict=True)))
    for (log_probs, _), expected in zip(found, alone, strict=True):
        assert (log_probs - expected).abs().max() < 1e-11


@pytest.mark.parametrize("context", [0, 2])
def test_a_prompt_is_never_farther_than_its_distance(context):
    """In float64 as one call that sees the prompt moved along; and that differs from a prompt that stays behind."""
    rng, decoder, prompt = random.Random(context), make_decoder(distance=40), [1, 2, 3, 4, 5]
    chunks = draw_chunks(rng, 30)
    found, past = decode(decoder, context, prompt, chunks)
    expected = whole(decoder, context, prompt, chunks, distance=40)
    assert (found - expected).abs().max() < 1e-10
    assert past.next_position <= 40 + 10 < sum(len(frames) for frames, _ in chunks)
    behind = (found - whole(decoder, context, prompt, chunks)).abs().amax(1)
    assert (behind > 1e-3).any() and (behind[:10] < 1e-10).all()


def test_a_distance_that_the_window_does_not_fit_in_leaves_the_window_behind_the_prompt():
    decoder = make_decoder(distance=3)
    _, past = decode(decoder, 2, [1, 2, 3, 4, 5], draw_chunks(random.Random(1), 20))
    assert past.next_position == past.length  # nothing between prompt and window, no position twice


def test_the_cost_of_a_chunk_does_not_grow():
    decoder, rng = make_decoder(distance=60), random.Random(5)
    frames, past, lengths, widths = torch.randn(4, 16).double(), decoder.prompted_past(2, [1] * 7), [], set()
    for k in range(60):
        (result,) = decoder.extend([Request(past, k, frames=frames)])
        (result,) = decoder.extend([Request(result.past, k, token=rng.randrange(VOCABULARY))])
        past = result.past
        lengths.append(past.length)
        widths.add(past.slot.store.width)
    assert set(lengths[2:]) == {7 + 3 * 5} and len(widths) == 1 and past.next_position <= 60 + 5


def test_a_pretrained_decoder(checkpoint):
    """Hugging Face's angles are float32, so moved keys differ a little."""
    rng, prompt = random.Random(2), [1, 2, 3]
    chunks = draw_chunks(rng, 12)
    near = make_decoder(pretrained=str(checkpoint))
    found, _ = decode(near, 1, prompt, chunks)
    assert (found - whole(near, 1, prompt, chunks)).abs().max() < 1e-11
    moving = make_decoder(distance=20, pretrained=str(checkpoint))
    (one, past), (shorter, _) = decode(moving, 1, prompt, chunks), decode(moving, 1, prompt, chunks[:3])
    assert (shorter - found[: len(shorter)]).abs().max() < 1e-11
    assert past.next_position <= 20 + 10 and (one - found).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["mistral", "gemma3_text", "smollm3"])
def test_layers_with_a_window_see_a_prompt_as_in_training(family, tmp_path):
    """Once chunks are evicted, the prompt is as far behind as it is in a whole sequence: out of the window's sight."""
    decoder = make_decoder(pretrained=checkpoints.make(tmp_path, family))
    rng, prompt = random.Random(6), [1, 2, 3, 4]
    chunks = [(torch.randn(len(frames), decoder.dim).double(), tokens) for frames, tokens in draw_chunks(rng, 12)]
    found, past = decode(decoder, 1, prompt, chunks)
    assert past.length < past.next_position  # something was evicted
    assert (found - whole(decoder, 1, prompt, chunks)).abs().max() < 1e-10


def test_a_decoder_says_how_long_a_prompt_it_reads():
    assert (make_decoder(distance=None).most_prompt_tokens, make_decoder(distance=7).most_prompt_tokens) == (0, 7)

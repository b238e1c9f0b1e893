"""A training step on eight times the audio is eight times the work and the memory: counted, not timed."""

import pytest
import torch
import training
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

TOKENS = 30


class Elements(TorchDispatchMode):
    """Counts the elements that all operations write, and those of the largest tensor."""

    def __init__(self):
        super().__init__()
        self.written = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.written += tensor.numel()
                self.largest = max(self.largest, tensor.numel())
        return result


def build(name, context=2):
    """Build a micro model in training mode."""
    task = training.task_of(name)
    settings = training.config(name)
    args = task.get_parser().parse_args([])
    args.token_list, args.stats_file = [str(number) for number in range(TOKENS)], None
    args.encoder_conf = settings["encoder_conf"]
    if name != "ctc":
        args.decoder_conf, args.chunking_conf = settings["decoder_conf"], {"chunk": 16, "context": context}
        args.loss_conf = {"ctc_weight": 0.0}
    torch.manual_seed(0)
    return task.build_model(args).train()


def draw(minutes):
    """Draw an utterance of noise with two tokens a second."""
    torch.manual_seed(0)
    samples, count, frames = int(minutes * 60 * 16000), int(minutes * 120), int(minutes * 1500)
    return {
        "speech": torch.randn(1, samples), "speech_lengths": torch.tensor([samples]),
        "text": torch.randint(0, TOKENS, (1, count)), "text_lengths": torch.tensor([count]),
        "ends": torch.arange(count)[None] * (frames // count),
    }  # fmt: skip


def encode(model, batch):
    """Return the sum of the encoder's frames: the loss of CTC itself has frames times tokens."""
    return model.acoustic(batch["speech"], batch["speech_lengths"])[0].sum()


STEPS = {"speechllm_xl": lambda model, batch: model(**batch)[0], "ctc": encode}


def count(model, step, minutes):
    """Return the products' operations, the elements written and those of the largest tensor."""
    batch = draw(minutes)
    with FlopCounterMode(display=False) as counter:
        step(model, batch).backward()
    with Elements() as elements:
        step(model, batch).backward()
    return counter.get_total_flops(), elements.written, elements.largest


@pytest.mark.parametrize("name", STEPS)
def test_eight_times_the_audio_is_eight_times_the_work(name):
    model = build(name)
    half, one, eight = (count(model, STEPS[name], minutes) for minutes in (0.5, 1, 8))
    assert all(1.7 < long / short < 2.2 for short, long in zip(half, one, strict=True))
    assert all(5.0 < long / short < 8.2 for short, long in zip(one, eight, strict=True))


def test_the_count_would_see_a_square():
    """A decoder that sees all chunks before has a mask of the length squared."""
    model = build("speechllm_xl", context=None)
    one, four = (count(model, STEPS["speechllm_xl"], minutes) for minutes in (1, 4))
    assert four[1] > 5 * one[1] and four[2] > 8 * one[2]

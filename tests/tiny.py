"""Models of random weights, in directories as training leaves them, audio to decode, and streams of it."""

import shutil

import numpy as np

ENCODER = [
    *("dim=16", "layers=2", "heads=2", "ffn_dim=32", "segment=8", "left_context=8", "right_context=2"),
    *("frontend=conv", "conv_kernel=3", "block_segments=3"),
]
DECODER = ["dim=24", "layers=2", "heads=3", "ffn_dim=32"]
SENTENCES = [
    "turn the light on", "turn the radio off", "call anna at nine", "the cat sat on the mat", "no rain today",
    "one two three four five", "six seven eight nine ten", "send a note to the other office", "stop", "go on then",
    "it's late", "all the others are here", "the rest is in there", "a lot of noise",
]  # fmt: skip


def conf(section, fields):
    return [item for field in fields for item in (f"--{section}", field)]


def write_model(directory, task, tokens, weights, extra=(), seed=1, change=None):
    """Build the task's model as training does, with random weights, and leave what training leaves."""
    import torch
    from espnet2.utils.yaml_no_alias_safe_dump import yaml_no_alias_safe_dump

    tokenizer = next(path for path in (tokens / "tokenizer", tokens / "tokenizer.model") if path.exists())
    args = task.get_parser().parse_args(
        [
            *("--output_dir", str(directory), "--token_list", str(tokens / "tokens.txt")),
            *("--tokenizer", str(tokenizer), "--specaug_conf", "freq_width=4"),
            *conf("features_conf", ["tail_frames=3"]),
            *conf("encoder_conf", ENCODER),
            *extra,
        ]
    )
    torch.manual_seed(seed)
    model = task.build_model(args)
    with torch.no_grad():
        # About the values of the noise that the tests decode, so that features are near 0 with variance 1.
        model.acoustic.normalizer.mean.fill_(-2.5)
        model.acoustic.normalizer.std.fill_(2.5)
        if change is not None:
            change(model)
    directory.mkdir(parents=True)
    with open(directory / "config.yaml", "w", encoding="utf-8") as stream:
        # As espnet2.tasks.abs_task.main_worker writes it.
        args.version, args.distributed = "202511", False
        yaml_no_alias_safe_dump(vars(args), stream, indent=4, sort_keys=False)
    (shutil.copytree if tokenizer.is_dir() else shutil.copy)(tokenizer, directory / tokenizer.name)
    torch.save(model.state_dict(), directory / weights)
    return directory


def talkative(model):
    """Gains (found by trial, with seed 3) that make the output depend on the audio: about 4 tokens a chunk."""
    decoder = model.decoder
    # Without and with stacked frames.
    projection = model.projection if hasattr(model.projection, "weight") else model.projection[-1]
    inputs, outputs = decoder.lm.get_input_embeddings().weight, decoder.lm.get_output_embeddings().weight
    for gain, weights in (
        (2, model.acoustic.encoder.parameters()),
        (6, decoder.lm.model.layers.parameters()),
        (8, [projection.weight]),
        (25, [inputs]),
        (40, [outputs]),
    ):
        for weight in weights:
            if weight.dim() >= 2:
                weight.mul_(gain)
    # A coordinate that is large in every input is large after the last norm too: a bias for `$`.
    projection.bias[0] = inputs[:, 0] = 3.0
    outputs[:, 0] = 0.0
    outputs[decoder.eoc, 0] = 1.5


def speech(seed, samples):
    """float32 noise (samples,) in [-1, 1] whose loudness and colour change 10 times a second."""
    rng = np.random.default_rng(seed)
    pieces = -(-samples // 1600)
    noise = rng.standard_normal((pieces, 1600))
    smooth = (noise + np.roll(noise, 1, axis=1)) / 2
    colour = rng.uniform(0, 1, (pieces, 1))
    mixed = (colour * smooth + (1 - colour) * noise) * rng.choice([0.003, 0.03, 0.2], (pieces, 1))
    return np.clip(mixed.reshape(-1)[:samples], -1, 1).astype(np.float32)


def cuts(audio, rng, most):
    """``audio`` in random pieces; pieces of 0 and 1 samples, and near the hop, are frequent."""
    pieces, begin = [audio[:0]], 0
    while begin < len(audio):
        size = rng.choice([0, 1, 159, 160, 161, rng.randint(1, most), rng.randint(1, most)])
        pieces.append(audio[begin : begin + size])
        begin += size
    return [*pieces, audio[:0]]


def play(stream, pieces):
    """All updates of a stream, the last one from ``close``."""
    return [*(stream.push(piece) for piece in pieces), stream.close()]


def said(updates):
    return " ".join(update.text for update in updates if update.text)

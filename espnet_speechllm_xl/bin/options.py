"""Options that several commands share: the model, its device, the search."""


def add_model_arguments(parser):
    """Which model, where it runs and how it decodes."""
    parser.add_argument("--model", required=True, help="model directory, or a file made by speechllm-xl pack")
    parser.add_argument("--weights", help="file in the model directory (default: the averaged best)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default %(default)s)")
    parser.add_argument("--dtype", default="float32", help="float32, float64, bfloat16 (default %(default)s)")
    parser.add_argument("--search", choices=["greedy", "chunk_sync", "alsd"], help="default: the model's configuration")
    parser.add_argument("--beam-size", type=int, metavar="N", help="hypotheses (default: the model's configuration)")
    parser.add_argument("--nbest", type=int, metavar="N", help="distinct texts kept (default: 1)")
    parser.add_argument("--max-tokens-per-chunk", type=int, metavar="N", help="cap, reported when hit")
    parser.add_argument("--recombine", action="store_true", default=None, help="merge hypotheses of equal text")
    parser.add_argument("--chunk-size", type=float, metavar="SECONDS", help="in place of training's; inf is allowed")
    parser.add_argument("--context", type=float, metavar="SECONDS", help="in place of training's; inf is allowed")


def sample_counts(dump):
    """``utt2num_samples`` of a dump set: ``{utterance: samples}``; raises KaldiError."""
    from espnet_speechllm_xl.kaldi import KaldiError, read_table

    counts = {}
    for utterance, value in read_table(dump / "utt2num_samples").items():
        if not value.isdecimal():
            where = dump / "utt2num_samples"
            raise KaldiError(f"{where}: '{value}' of '{utterance}' is no number: format the set again")
        counts[utterance] = int(value)
    return counts


def load_settings(args):
    """Keyword arguments of ``Speech2Text.from_pretrained``, the path as ``path``; only what the user gave."""
    names = {
        "path": args.model,
        "weights": args.weights,
        "device": args.device,
        "dtype": args.dtype,
        "search": args.search,
        "beam_size": args.beam_size,
        "nbest": args.nbest,
        "max_tokens_per_chunk": args.max_tokens_per_chunk,
        "recombine": args.recombine,
        "chunk_size": args.chunk_size,
        "context": args.context,
    }
    return {name: value for name, value in names.items() if value is not None}

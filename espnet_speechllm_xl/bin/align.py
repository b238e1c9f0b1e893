"""``align``: end frames of every character of a dump set, by the CTC aligner or from reference word times."""

import json
from collections import Counter
from pathlib import Path

from espnet_speechllm_xl.bin import doubts
from espnet_speechllm_xl.bin.options import add_jobs_arguments, at_least
from espnet_speechllm_xl.ctm import SILENCES, UNKNOWN_WORDS

UNUSABLE = "unusable audio"  # a reason that may be gone the next time
WRITTEN = ("text", "spk2utt", "char_ends", "words.ctm", "failed", "report.json")
COPIED = ("wav.scp", "utt2spk", "utt2num_samples")  # from the dump into the aligned set


def add_arguments(parser):
    """Options of the command."""
    parser.add_argument("--dump", required=True, help="dump set to align (dump/raw/SET)")
    parser.add_argument("--out", required=True, help="directory for the aligned set")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="directory of a trained aligner")
    source.add_argument("--ctm", help="word times to use instead of the aligner's")
    for name, default, text in (
        ("--silences", SILENCES, "entries of --ctm to pass over, where the transcript has no such word"),
        ("--unknown-words", UNKNOWN_WORDS, "entries of --ctm that stand for words that its aligner did not know"),
    ):
        parser.add_argument(
            name,
            type=_listed,
            default=default,
            metavar="A,B",
            help=f"{text}; in any case (default: {','.join(default)})",
        )
    parser.add_argument("--weights", help="file in the model directory (default: the averaged best)")
    parser.add_argument("--text", help="Kaldi text to move the alignment to: the same words, other spelling")
    parser.add_argument(
        "--batch-size", type=at_least(int, 1), default=16, help="utterances computed at once (default %(default)s)"
    )
    add_jobs_arguments(parser)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default %(default)s)")


def main(args):
    """Write the aligned set: Kaldi tables of the utterances that could be aligned, ``char_ends``, ``words.ctm``,
    ``failed`` (utterance and reason), ``report.json``; returns the exit code, 1 when some audio could not be read."""
    from espnet_speechllm_xl import jobs
    from espnet_speechllm_xl.bin.options import sample_counts
    from espnet_speechllm_xl.errors import UserError
    from espnet_speechllm_xl.io import atomic_write
    from espnet_speechllm_xl.kaldi import read_table

    dump, out = Path(args.dump), Path(args.out)
    samples = sample_counts(dump) if args.model else {}
    text, task = read_table(dump / "text"), None
    if args.model:
        batches = jobs.batches_by_length({utterance: samples.get(utterance, 0) for utterance in text}, args.batch_size)
        settings = {
            "model": args.model,
            "weights": args.weights,
            "device": args.device,
            "dump": str(dump),
            "stamp": jobs.stamp(args.model, dump / "text", dump / "progress.jsonl", dump / "wav.scp"),
        }
        task = {"settings": settings, "batches": batches, "text": args.text and read_table(args.text)}
        if not args.shard:  # else each of many would say it, and then the run that puts them together
            doubts.say(doubts.of_training(Path(args.model)))
        before = jobs.summary_of(out / "report.json", task)
        if before and not before.get("unusable", before["failed"]):
            print(f"{out}: {before['aligned']} of {before['total']} utterances were aligned before by the same weights")
            return 0

        def begun():
            for name in () if before else (*WRITTEN, *COPIED):  # lest a training takes another aligner's
                (out / name).unlink(missing_ok=True)

        title = f"align {dump.name}"
        results = jobs.run_batches(
            batches, make_worker, settings, out / ".parts", args.nj, title, args.shard, begun, _is_unusable, _crashed
        )
        if args.shard:
            return 0
        aligned = dict(results)
    elif args.shard:
        raise UserError("--shard divides the work of a --model; word times of a --ctm are only copied")
    else:
        aligned = _from_ctm(args.ctm, text, args.silences, args.unknown_words)
    if args.text:
        _move(aligned, text, read_table(args.text))
        text = read_table(args.text)
    for name in COPIED:
        usable = {utterance for utterance, result in aligned.items() if not isinstance(result, str)}
        absent = usable - read_table(dump / name).keys()
        aligned.update(dict.fromkeys(absent, f"not in {name}"))
    failed = {utterance: result for utterance, result in sorted(aligned.items()) if isinstance(result, str)}
    good = {utterance: result for utterance, result in sorted(aligned.items()) if not isinstance(result, str)}
    if not good:
        reason = next(iter(failed.values()), "no utterances")
        raise UserError(f"{dump}: no utterance could be aligned, the first because: {reason}")
    reasons = Counter(map(kind_of_reason, failed.values()))
    _write(dump, out, text, good, failed)
    report = {"aligned": len(good), "failed": len(failed), "total": len(aligned), "unusable": reasons[UNUSABLE]}
    with atomic_write(out / "report.json") as stream:
        json.dump({**report, "task": task and jobs.digest(task)}, stream)
    if not reasons[UNUSABLE]:  # else the next run has to do less
        jobs.finish(out / ".parts")
    listed = "".join(f", {count} left out: {reason}" for reason, count in sorted(reasons.items()))
    print(f"{out}: {len(good)} of {len(aligned)} utterances aligned{listed}")
    return 1 if reasons[UNUSABLE] else 0


def _listed(text: str) -> list[str]:
    """The entries of a list, parted by commas or blanks."""
    return text.replace(",", " ").split()


def _crashed(utterance: str, reason: str) -> list:
    """What a worker would give for an utterance that a process died of."""
    return [utterance, f"{UNUSABLE}: {reason}"]


def _is_unusable(item):
    """Of what a worker gives for an utterance."""
    _, result = item
    return isinstance(result, str) and kind_of_reason(result) == UNUSABLE


def kind_of_reason(reason):
    """The reason without its figures and symbols, for counting."""
    return reason.split(" (")[0].split(":")[0]


def make_worker(settings):
    """Worker of :func:`~espnet_speechllm_xl.jobs.run_batches`: utterance ids -> ``[id, result]`` pairs.

    A result is ``[start and end frame of each character]`` as two lists, or the reason (str) why there is none.
    """
    import torch

    from espnet_speechllm_xl.audio import AudioError, read_audio
    from espnet_speechllm_xl.inference import load_model
    from espnet_speechllm_xl.jobs import as_memory_allows
    from espnet_speechllm_xl.kaldi import read_table

    model, tokenizer, _ = load_model(settings["model"], "ctc", settings["weights"], settings["device"])
    dump = Path(settings["dump"])
    text, audio = read_table(dump / "text"), read_table(dump / "wav.scp")
    rate = model.acoustic.config.sample_rate

    def work(utterances):
        results, speech = {}, {}
        for utterance in utterances:
            try:
                if utterance not in audio:
                    raise AudioError("missing", "not in wav.scp")
                speech[utterance] = torch.as_tensor(read_audio(audio[utterance], rate, notes={}))
            except AudioError as error:
                results[utterance] = f"{UNUSABLE}: {error}"
        if speech:
            pairs = as_memory_allows(align, list(speech.items()))
            named = (result if reason is None else f"{UNUSABLE}: {reason}" for result, reason in pairs)
            results.update(zip(speech, named, strict=True))
        return [[utterance, results[utterance]] for utterance in utterances]

    def align(speech):
        utterances, recordings = zip(*speech, strict=True)
        lengths = torch.tensor([len(samples) for samples in recordings])
        padded = torch.nn.utils.rnn.pad_sequence(recordings, batch_first=True)
        with torch.no_grad():
            log_probs, counts = model.log_probs(padded.to(settings["device"]), lengths.to(settings["device"]))
        rows = zip(utterances, log_probs.cpu(), model.acoustic.heard(counts).tolist(), strict=True)
        return [_align_one(row[:count], text[utterance], model, tokenizer) for utterance, row, count in rows]

    return work


def _align_one(log_probs, transcript, model, tokenizer):
    from espnet_speechllm_xl.alignment import AlignmentError, char_times, viterbi
    from espnet_speechllm_xl.text import normalise

    transcript = normalise(transcript)
    unknown = tokenizer.unknown(transcript)
    if unknown:
        return f"unknown symbols: {''.join(sorted(set(unknown)))}"
    tokens, token_char_ends = tokenizer.encode(transcript)
    try:
        spans = viterbi(log_probs, tokens, model.ctc.blank)
    except AlignmentError as error:
        return str(error)
    return char_times(spans, token_char_ends, len(transcript))


def _from_ctm(path, text, silences, unknown):
    from espnet_speechllm_xl.alignment import AlignmentError, from_word_times
    from espnet_speechllm_xl.ctm import read_ctm, spoken
    from espnet_speechllm_xl.errors import UserError
    from espnet_speechllm_xl.text import normalise

    if not Path(path).is_file():
        raise UserError(f"{path} does not exist: give the CTM file with the word times of the set")
    words = read_ctm(path)
    results, passed_over, replaced = {}, Counter(), Counter()
    for utterance, transcript in text.items():
        transcript = normalise(transcript)
        found = spoken(words.get(utterance, ()), transcript.split(), silences, unknown)
        try:
            if utterance not in words:
                raise AlignmentError("not in the CTM")
            results[utterance] = from_word_times(transcript, found.words)
            passed_over += found.passed_over
            replaced += found.replaced
        except AlignmentError as error:
            results[utterance] = _foreign_entries(found.words, transcript) or str(error)
    for counts, what in ((passed_over, "passed over as silence"), (replaced, "taken as the words of the transcript")):
        if counts:
            print(f"{path}: {what}: {', '.join(f'{name} {count}' for name, count in sorted(counts.items()))}")
    return results


def _foreign_entries(entries, transcript):
    """The reason that names the entries of a CTM that the transcript has not; '' without any."""
    from espnet_speechllm_xl.ctm import folded
    from espnet_speechllm_xl.metrics import some_names

    known = set(folded(transcript).split())
    foreign = sorted({entry.text for entry in entries if folded(entry.text) not in known})
    advice = "entries that are no words are listed by --silences and --unknown-words"
    return f"entries of the CTM that the transcript lacks: {some_names(foreign)} ({advice})" if foreign else ""


def _move(aligned, source, target):
    """Move every alignment to the spelling of ``target``, in place."""
    from espnet_speechllm_xl.alignment import AlignmentError, transfer
    from espnet_speechllm_xl.text import normalise

    for utterance, result in aligned.items():
        if isinstance(result, str):
            continue
        try:
            if utterance not in target:
                raise AlignmentError("not in the text to move to")
            texts = normalise(source[utterance]), normalise(target[utterance])
            aligned[utterance] = [transfer(texts[0], times, texts[1]) for times in result]
        except AlignmentError as error:
            aligned[utterance] = str(error)


def _write(dump, out, text, good, failed):
    from espnet_speechllm_xl.alignment import format_char_ends, word_times
    from espnet_speechllm_xl.ctm import write_ctm
    from espnet_speechllm_xl.kaldi import read_table, spk2utt, write_table
    from espnet_speechllm_xl.text import normalise

    texts = {utterance: normalise(text[utterance]) for utterance in good}
    write_table(out / "text", texts)
    for name in COPIED:
        table = read_table(dump / name)
        write_table(out / name, {utterance: table[utterance] for utterance in good})
    write_table(out / "spk2utt", spk2utt(read_table(out / "utt2spk")))
    write_table(out / "char_ends", {utterance: format_char_ends(ends) for utterance, (_, ends) in good.items()})
    write_ctm(out / "words.ctm", {utterance: word_times(texts[utterance], *times) for utterance, times in good.items()})
    write_table(out / "failed", failed)

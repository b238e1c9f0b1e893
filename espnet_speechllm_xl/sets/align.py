"""Aligning a dump set."""

from collections import Counter
from pathlib import Path

from espnet_speechllm_xl.corpus.kaldi import kind_of_reason

UNUSABLE = "unusable audio"  # a reason that may be gone the next time
WRITTEN = ("text", "spk2utt", "char_ends", "words.ctm", "failed", "report.json")
COPIED = ("wav.scp", "utt2spk", "utt2num_samples")  # from the dump into the aligned set


def crashed(utterance: str, reason: str) -> list:
    """What a worker would give for an utterance that a process died of."""
    return [utterance, f"{UNUSABLE}: {reason}"]


def is_unusable(item):
    """Of what a worker gives for an utterance."""
    _, result = item
    return isinstance(result, str) and kind_of_reason(result) == UNUSABLE


def make_worker(settings):
    """Worker of :func:`~espnet_speechllm_xl.sets.batch_jobs.run_batches`: utterance ids -> ``[id, result]`` pairs.

    A result is ``[start and end frame of each character]`` as two lists, or the reason (str) why there is none.
    """
    import torch

    from espnet_speechllm_xl.corpus.audio import AudioError, read_audio
    from espnet_speechllm_xl.corpus.kaldi import read_table
    from espnet_speechllm_xl.sets.batch_jobs import as_memory_allows
    from espnet_speechllm_xl.trained_model import load_model

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
        rows = zip(utterances, log_probs.cpu(), model.acoustic.audio_frames(counts).tolist(), strict=True)
        return [_align_one(row[:count], text[utterance], model, tokenizer) for utterance, row, count in rows]

    return work


def _align_one(log_probs, transcript, model, tokenizer):
    from espnet_speechllm_xl.model.alignment import AlignmentError, char_times, viterbi
    from espnet_speechllm_xl.tokenization import normalise

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


def alignments_from_ctm(path, text, silences, unknown):
    from espnet_speechllm_xl.corpus.ctm import read_ctm, spoken
    from espnet_speechllm_xl.errors import UserError
    from espnet_speechllm_xl.model.alignment import AlignmentError, from_word_times
    from espnet_speechllm_xl.tokenization import normalise

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
    from espnet_speechllm_xl.corpus.ctm import folded
    from espnet_speechllm_xl.evaluation.metrics import some_names

    known = set(folded(transcript).split())
    foreign = sorted({entry.text for entry in entries if folded(entry.text) not in known})
    advice = "entries that are no words are listed by --silences and --unknown-words"
    return f"entries of the CTM that the transcript lacks: {some_names(foreign)} ({advice})" if foreign else ""


def move_alignments(aligned, source, target):
    """Move every alignment to the spelling of ``target``, in place."""
    from espnet_speechllm_xl.model.alignment import AlignmentError, transfer
    from espnet_speechllm_xl.tokenization import normalise

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


def write_alignments(dump, out, text, good, failed):
    from espnet_speechllm_xl.corpus.ctm import write_ctm
    from espnet_speechllm_xl.corpus.kaldi import read_table, spk2utt, write_table
    from espnet_speechllm_xl.model.alignment import format_char_ends, word_times
    from espnet_speechllm_xl.tokenization import normalise

    texts = {utterance: normalise(text[utterance]) for utterance in good}
    write_table(out / "text", texts)
    for name in COPIED:
        table = read_table(dump / name)
        write_table(out / name, {utterance: table[utterance] for utterance in good})
    write_table(out / "spk2utt", spk2utt(read_table(out / "utt2spk")))
    write_table(out / "char_ends", {utterance: format_char_ends(ends) for utterance, (_, ends) in good.items()})
    write_ctm(out / "words.ctm", {utterance: word_times(texts[utterance], *times) for utterance, times in good.items()})
    write_table(out / "failed", failed)

"""Slow, obvious references in plain Python that several tests share."""

import math

import torch

from espnet_speechllm_xl.model.decoder_steps import make_results


def stacked(extended):
    """Return the results of a decoder that has these pasts and log-probabilities (V + 1,)."""
    pasts, log_probs = zip(*extended, strict=True)
    return make_results(pasts, torch.stack(log_probs))


def slow_stacks(num_frames, chunk, reduction=1):
    """The frames of each decoder input that stands for frames of one utterance, as lists, and the chunk of each."""
    stacks, chunks = [], []
    for frame in range(num_frames):
        k = 0 if chunk is None else frame // chunk
        if not chunks or chunks[-1] != k or len(stacks[-1]) == reduction:
            stacks.append([])
            chunks.append(k)
        stacks[-1].append(frame)
    return stacks, chunks


def slow_sequence(num_frames, tokens, ends, chunk, delay, eoc, reduction=1):
    """The decoder sequence of one utterance: lists of inputs (('frame' or 'token', index)), chunk ids, targets.

    A target of None does not count.  With a reduction, a 'frame' is an input of :func:`slow_stacks`.
    """
    size = chunk or max(num_frames, 1)
    count = -(-num_frames // size)
    inputs, chunks, targets = [], [], []
    for k in range(count):
        own_frames = [("frame", n) for n, own in enumerate(slow_stacks(num_frames, chunk, reduction)[1]) if own == k]
        own_tokens = [u for u in range(len(tokens)) if min((ends[u] + delay) // size, count - 1) == k]
        inputs += own_frames + [("token", u) for u in own_tokens]
        chunks += [k] * (len(own_frames) + len(own_tokens))
        targets += [None] * (len(own_frames) - 1) + [tokens[u] for u in own_tokens] + [eoc]
    return inputs, chunks, targets


def slow_label_sequence(num_frames, tokens, ends, chunk, delay, eoc):
    """The same for a decoder that is fed labels only: inputs are labels, the first of a chunk being ``eoc``."""
    _, chunks, targets = slow_sequence(num_frames, tokens, ends, chunk, delay, eoc)
    scored = [(k, target) for k, target in zip(chunks, targets, strict=True) if target is not None]
    own_chunks, own_targets = [k for k, _ in scored], [target for _, target in scored]
    return [eoc, *own_targets][: len(own_targets)], own_chunks, own_targets


def slow_visible(chunks, context):
    """``seen[i][j]``: whether input i sees input j, from the chunk ids of one sequence."""
    seen = [[False] * len(chunks) for _ in chunks]
    for i, m in enumerate(chunks):
        for j, n in enumerate(chunks):
            seen[i][j] = j <= i and (context is None or m - n <= context)
    return seen


def lattice_loss(log_probs, labels):
    """-log of the sum of all paths of ``labels`` through ``log_probs`` (T, U + 1, V + 1); blank is 0."""
    frames, count = log_probs.shape[0], len(labels)
    total = {(0, 0): 0.0}
    for t in range(frames):
        for u in range(count + 1):
            ways = [total[t, u]] if (t, u) == (0, 0) else []
            if t:
                ways.append(total[t - 1, u] + float(log_probs[t - 1, u, 0]))
            if u:
                ways.append(total[t, u - 1] + float(log_probs[t, u - 1, labels[u - 1]]))
            total[t, u] = math.log(sum(math.exp(way) for way in ways))
    return -(total[frames - 1, count] + float(log_probs[frames - 1, count, 0]))


def slow_ctc(log_probs, tokens, blank):
    """Negative log-probability of ``tokens``: the forward algorithm, state by state."""
    states = [blank]
    for token in tokens:
        states += [token, blank]
    alpha = {0: log_probs[0][blank]}
    if tokens:
        alpha[1] = log_probs[0][tokens[0]]
    for scores in log_probs[1:]:
        new = {}
        for s, state in enumerate(states):
            before = [s, s - 1] + ([s - 2] if s >= 2 and state not in (blank, states[s - 2]) else [])
            terms = [alpha[b] for b in before if b in alpha]
            if terms:
                top = max(terms)
                new[s] = top + math.log(sum(math.exp(term - top) for term in terms)) + scores[state]
        alpha = new
    terms = [alpha[s] for s in {len(states) - 1, max(len(states) - 2, 0)} if s in alpha]
    if not terms:
        return math.inf
    return -(max(terms) + math.log(sum(math.exp(term - max(terms)) for term in terms)))


def slow_errors(left, right):
    """Plain Levenshtein recursion, row by row."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        previous, row = row, [i]
        for j, b in enumerate(right, 1):
            row.append(min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (a != b)))
    return row[-1]

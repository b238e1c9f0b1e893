"""Slow, obvious references in plain Python that several tests share."""


def slow_sequence(num_frames, tokens, ends, chunk, delay, eoc):
    """The decoder sequence of one utterance: lists of inputs (('frame' or 'token', index)), chunk ids, targets.

    A target of None does not count.
    """
    size = chunk or max(num_frames, 1)
    count = -(-num_frames // size)
    inputs, chunks, targets = [], [], []
    for k in range(count):
        own_frames = [("frame", t) for t in range(num_frames) if k * size <= t < (k + 1) * size]
        own_tokens = [u for u in range(len(tokens)) if min((ends[u] + delay) // size, count - 1) == k]
        inputs += own_frames + [("token", u) for u in own_tokens]
        chunks += [k] * (len(own_frames) + len(own_tokens))
        targets += [None] * (len(own_frames) - 1) + [tokens[u] for u in own_tokens] + [eoc]
    return inputs, chunks, targets


def slow_visible(chunks, context):
    """``seen[i][j]``: whether input i sees input j, from the chunk ids of one sequence."""
    seen = [[False] * len(chunks) for _ in chunks]
    for i, m in enumerate(chunks):
        for j, n in enumerate(chunks):
            seen[i][j] = j <= i and (context is None or m - n <= context)
    return seen

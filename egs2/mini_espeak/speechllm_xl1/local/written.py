"""Sentences of the grammar as people write them: capitals, punctuation, numbers, times, abbreviations.

``call doctor miller at seven twenty five on the third of may`` is ``Call Dr. Miller at 7:25 on the 3rd of May.``
"""

import sentences

SMALL = {
    word: value
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen".split()
    )
}
TENS = {word: 10 * value for value, word in enumerate(sentences.GRAMMAR["tens"], 2)}
EARLY = {word: value for value, word in enumerate(sentences.GRAMMAR["early"], 1)}
ORDINALS = {**EARLY, "tenth": 10, "eleventh": 11, "twelfth": 12, "twentieth": 20, "thirtieth": 30}
ENDINGS = {1: "st", 2: "nd", 3: "rd"}
TITLES = {"doctor": "Dr.", "professor": "Prof."}
NAMES = {name for symbol in ("first", "last", "city", "weekday", "month") for name in sentences.GRAMMAR[symbol]}
QUESTIONS = ("which", "is", "how", "what", "where")


def number(words):
    """The number that ``words`` begin with, and how many of them it takes; None for another word."""
    first, second, third, fourth = [*words[:4], "", "", "", ""][:4]
    if first in TENS:
        unit = SMALL.get(second, 0)
        return (TENS[first] + unit, 2) if 0 < unit < 10 else (TENS[first], 1)
    if first not in SMALL:
        return None
    if second == "thousand":
        return 1000 * SMALL[first] + 100 * SMALL[third], 4
    if second == "hundred":
        return 100 * SMALL[first] + SMALL[fourth], 4
    return SMALL[first], 1


def ordinal(words):
    """The same of ``twenty first`` and ``third``."""
    first, second = [*words[:2], "", ""][:2]
    if first in ORDINALS:
        return ORDINALS[first], 1
    return (TENS[first] + EARLY[second], 2) if first in TENS and second in EARLY else None


def _next(words):
    """How the first of ``words`` are written, and how many these are."""
    if found := ordinal(words):
        value, taken = found
        return f"{value}{ENDINGS.get(value % 10, 'th') if value // 10 != 1 else 'th'}", taken
    if found := number(words):
        value, taken = found
        minutes = number(words[taken:])
        if taken == 1 and minutes and value <= 12 and minutes[0] > 12:
            return f"{value}:{minutes[0]}", 1 + minutes[1]
        return (f"${value}", taken + 1) if words[taken : taken + 1] == ["dollars"] else (str(value), taken)
    word = words[0]
    if word in TITLES:
        return TITLES[word], 1
    if word in NAMES or len(word) == 1 and word in sentences.GRAMMAR["letter"]:
        return word.capitalize(), 1
    return word, 1


def written(sentence):
    """A sentence as ``[(written word, how many spoken words it stands for), ...]``."""
    words, found = sentence.split(), []
    while words:
        if words[:2] == ["and", "then"]:
            found[-1] = f"{found[-1][0]},", found[-1][1]
        found.append(_next(words))
        words = words[found[-1][1] :]
    first, last = found[0], found[-1]
    found[0] = first[0][:1].upper() + first[0][1:], first[1]
    mark = "?" if sentence.split()[0] in QUESTIONS else "."
    found[-1] = (found[0] if len(found) == 1 else last)[0] + mark, last[1]
    return found


def with_times(plan_sentences, words):
    """The words of an utterance with their times, written: ``[(word, start, end), ...]``.

    ``words`` are the spoken ones, with times; those of the last sentences may be missing.
    """
    found, place = [], 0
    for sentence in plan_sentences:
        if place == len(words):
            break
        for word, taken in written(sentence):
            found.append((word, words[place][1], words[place + taken - 1][2]))
            place += taken
    return found

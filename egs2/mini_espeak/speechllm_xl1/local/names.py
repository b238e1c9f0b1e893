"""Made-up names, such as ``belinor``, in place of the grammar's: each set has its own, which no other set has.

So prompts can be measured on words that the training text never has.
"""

import itertools
import random

import sentences

ONSETS, VOWELS, ENDS = "b d f g k l m n p r s t v z br dr gr st tr".split(), "aeiou", ["", "l", "n", "r", "s"]
SYMBOLS = ("first", "last", "city")  # of the grammar, that names stand for
MOST = {"train": 3000, "dev": 300, "test": 300}
OTHERS = (0, 10, 30)  # names in a prompt that are not said


def of_set(name):
    """The names of one set, always the same: none is that of another set with one letter added, left out or changed."""
    syllables = ["".join(parts) for parts in itertools.product(ONSETS, VOWELS)]
    rng, found = random.Random("names"), {split: [] for split in sentences.SETS}
    nearby = {split: set() for split in sentences.SETS}
    taken = sentences.vocabulary()
    while any(len(found[split]) < most for split, most in MOST.items()):
        made = "".join(rng.choices(syllables, k=rng.randint(2, 3))) + rng.choice(ENDS)
        split = sentences.set_of(made)
        if made in taken or len(found[split]) == MOST[split]:
            continue
        near = _neighbours(made)
        if any(near & nearby[other] for other in sentences.SETS if other != split):
            continue
        taken.add(made)
        nearby[split] |= near
        found[split].append(made)
    return found[name]


def _neighbours(word):
    """The word, and what is left of it when one letter goes; words that differ in one letter share one of these."""
    return {word, *(word[:place] + word[place + 1 :] for place in range(len(word)))}


def grammar(name):
    """The grammar with the names of a set."""
    own = of_set(name)
    return {**sentences.GRAMMAR, **{symbol: own[place :: len(SYMBOLS)] for place, symbol in enumerate(SYMBOLS)}}


def prompts(texts, name, seed):
    """Prompts for a set: by the name of their file, utterances with the names that are said among others that are not.

    An utterance without names has no line in ``prompts_right_0``.

    Args:
        texts: of each utterance.
        name: of the set whose names they have.
        seed: of the corpus.
    """
    own, files = of_set(name), {}
    for count in OTHERS:
        for said in ("right", "wrong") if count else ("right",):
            rng = random.Random(f"prompts {name} {seed} {count} {said}")
            lines = {}
            for utterance, text in texts.items():
                names = sorted(set(own).intersection(text.split()))
                others = rng.sample([other for other in own if other not in names], count)
                words = [*(names if said == "right" else ()), *others]
                rng.shuffle(words)
                if words:
                    lines[utterance] = " ".join(words)
            files[f"prompts_{said}_{count}"] = lines
    return files

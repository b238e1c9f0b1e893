"""Made-up names, such as ``cophaidrin``: each set has its own, which no other set has, nor any like them.

So prompts can be measured on words that the training text never has.  Some sounds have two spellings (``f`` and
``ph``): as with the names of people, who hears a name cannot know how it is written, who expects it can.
"""

import functools
import itertools
import random
import re

import sentences

ONSETS = "b d f ph g j k c l m n p r s sh t v w z br dr gr tr kr cr st sl".split()
VOWELS = "a a a e e e i i i o o o u u ai ay ee ea".split()
ENDS = ["", "l", "m", "n", "r", "s", "t", "k", "ck"]
# Spellings that espeak-ng reads alike in most places.
ALIKE = {"ph": "f", "c(?=[ei])": "s", "ck?": "k", "ay": "ai", "ea": "ee"}
MOST = {"train": 3000, "dev": 300, "test": 600}
SENTENCES = [
    "call {name} and {name}",
    "ask {name} about {name} and {name}",
    "invite {name} {name} and {name}",
    "my name is {name} {name}",
    "where did {name} meet {name}",
    "{name} and {name} are in {name}",
    "{name} {name} will visit {name} {when}",
    "{name} likes {music} music and {name}",
    "is {name} near {name} or near {name}",
    "send a {letterlike} to {name} and {name}",
    "say {remark} to {name} and {name}",
    "the {vehicle} from {name} to {name} is late",
    "how far is it from {name} to {name} and {name}",
    "it was {weather} in {name} and {weather} in {name}",
]
# Per file, whether the prompts hold the names that are said, and how many others.
PROMPTS = {
    f"prompts_{said}_{others}": (said == "right", others)
    for others in (0, 20, 100)
    for said in ("right", "wrong")
    if others or said == "right"
}


@functools.cache
def of_sets():
    """The names of each set, always the same.

    Between names of two sets, and between names and the grammar's words, three letters or more differ, also where all
    sounds are spelled alike.
    """
    syllables = ["".join(parts) for parts in itertools.product(ONSETS, VOWELS)]
    rng = random.Random("names")
    found = {split: [] for split in sentences.SETS}
    near = {split: set() for split in sentences.SETS}  # what is left of the names when up to two letters go
    near["words"] = {rest for word in sentences.vocabulary() for rest in neighbours(word)}
    while any(len(found[split]) < most for split, most in MOST.items()):
        made = "".join(rng.choices(syllables, k=rng.randint(2, 3))) + rng.choice(ENDS)
        split = sentences.set_of(made)
        if len(found[split]) == MOST[split] or made in found[split]:
            continue
        own = neighbours(made)
        if all(own.isdisjoint(others) for other, others in near.items() if other != split):
            near[split] |= own
            found[split].append(made)
    return found


def sound(name):
    """A name with one spelling for each sound."""
    for spelling, plain in ALIKE.items():
        name = re.sub(spelling, plain, name)
    return name


def neighbours(word):
    """What is left of a word, and of its sound, without up to two letters.

    Words that differ in at most two letters, added, left out or changed, have one of these in common.
    """
    spelt = {word, sound(word)}
    for _ in range(2):
        spelt |= {each[:place] + each[place + 1 :] for each in spelt for place in range(len(each))}
    return spelt


def grammar(name):
    """The grammar with sentences (``named``) that hold the names of a set."""
    return {**sentences.GRAMMAR, "named": SENTENCES, "name": of_sets()[name]}


def prompts(texts, name, seed):
    """Prompts for a set, of names of that set: ``{file: {utterance: prompt}}``.

    The others of ``prompts_right_20`` are those of ``prompts_wrong_20``, and among those of ``prompts_right_100``.  An
    utterance without names has no line in ``prompts_right_0``.

    Args:
        texts: ``{utterance: what is said}``.
        name: of the set.
        seed: of the corpus.
    """
    files = {file: {} for file in PROMPTS}
    most = max(others for _, others in PROMPTS.values())
    for utterance, text in texts.items():
        said = [word for word in dict.fromkeys(text.split()) if word in of_sets()[name]]
        rng = random.Random(f"prompts {utterance} {seed}")
        others = rng.sample([other for other in of_sets()[name] if other not in said], most)
        for file, (right, count) in PROMPTS.items():
            words = [*(said if right else ()), *others[:count]]
            if words:
                files[file][utterance] = " ".join(rng.sample(words, len(words)))
    return files

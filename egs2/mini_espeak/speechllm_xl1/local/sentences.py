"""A small English grammar: commands, questions, numbers, names, dates, times, places, spelled items.

``GRAMMAR`` maps a symbol to its alternatives; ``{name}`` inside an alternative is another symbol, and ``[...]*3`` says
what it makes of the brackets three times.
Sentences are lower-case words separated by single spaces: no digits, no punctuation.
"""

import random
import re
import zlib

SETS = ("train", "dev", "test")

GRAMMAR = {
    "sentence": [
        "turn on the {device} in the {room}{at}",
        "turn off the {device} in the {room}{at}",
        "please {switch} the {opening} in the {room} {when}",
        "{switch} the {colour} {opening} near the {room}",
        "set the {device} in the {room} to {number} degrees",
        "paint the {opening} in the {room} {colour} and {colour}",
        "call {person} at {clock} on {date}",
        "call {person} and say {remark}",
        "dial {digit} {digit} {digit} {digit} {digit} {digit}",
        "the number of {person} is {digit} {digit} {digit} {digit}",
        "the code is {letter} {digit} {letter} {digit}",
        "spell it {letter} {letter} {letter} {letter}",
        "seat {letter} {number} in the {colour} train",
        "{person} lives in {city} near the {place}",
        "{person} will visit {city} on {date}",
        "{person} was born on {date}",
        "remind me to {chore} on {weekday} {when}",
        "remind {first} to {chore} {when}",
        "wake me up on {weekday} at {clock}",
        "set the alarm to {clock} on {weekday}",
        "book a {vehicle} from {city} to {city} on {date}",
        "the {vehicle} to {city} leaves at {clock}",
        "which {vehicle} goes from {city} to {city} {when}",
        "is it {weather} in {city} on {date}",
        "it was {weather} and {weather} in {city} {when}",
        "how far is it from {city} to {city} and {city}",
        "add {number} {food} and {number} {food} to the list",
        "we need {count} {container} of {drink} and {number} {food}",
        "buy {count} {container} of {drink} on {weekday} {when}",
        "the {food} cost {number} dollars",
        "what is {number} plus {number}",
        "what is {number} minus {number}",
        "{number} times {count} makes how much",
        "play {music} music in the {room} at {clock}",
        "play song {number} by {person}",
        "the meeting on {date} starts at {clock}",
        "today is {date}",
        "move the meeting with {person} to {date}",
        "{first} has a {colour} {thing} and a {colour} {thing}",
        "where did {first} put the {colour} {thing}",
        "my {colour} {thing} is under the {colour} {thing}",
        "go {direction} after {number} miles and then {direction}",
        "turn {direction} at the {place} and then {direction} near the {place}",
        "meet me at the {place} at {clock}",
        "the {place} in {city} opens at {clock}",
        "page {number} of the {colour} {thing}",
        "send a {letterlike} to {person} {when}",
        "bring the {letterlike} and some {drink} to {person}",
        "say {remark} to {person} on {weekday}",
        "{first} likes {music} music and {drink}",
    ],
    "repeats": [
        "dial [{digit}]*6",
        "dial [{digit}]*3 [{digit}]*3",
        "dial [{digit}]*2 [{digit}]*2 [{digit}]*2",
        "dial [[{digit}]*2 {digit}]*2",
        "dial [{digit} {digit} {digit}]*2",
        "dial {digit} [{digit}]*4 {digit}",
        "the number of {person} is [{digit}]*2 [{digit}]*2",
        "the number of {person} is {digit} [{digit}]*3",
        "the code is [{letter}]*2 [{digit}]*2",
        "spell it [{letter}]*2 [{letter}]*2",
        "seat [{letter}]*2 {number} in the {colour} train",
    ],
    "at": ["", " at {clock}"],
    "when": ["today", "tomorrow", "tonight", "this morning", "this afternoon", "every evening"],
    "device": ["lights", "radio", "heater", "television", "lamp"],
    "switch": ["open", "close", "lock"],
    "opening": ["door", "window", "curtain"],
    "room": ["kitchen", "bedroom", "bathroom", "garden", "office", "hallway"],
    "colour": ["red", "green", "blue", "yellow", "purple", "brown", "white", "black"],
    "thing": ["book", "jacket", "umbrella", "bicycle", "pencil", "blanket"],
    "letterlike": ["message", "picture", "ticket"],
    "first": ["anna", "peter", "maria", "oliver", "susan", "thomas", "george", "victor", "julia", "daniel"],
    "last": ["miller", "jackson", "wilson", "parker", "hamilton", "cooper", "robinson"],
    "person": ["{first} {last}", "{first} {last}", "{title} {last}", "{first}"],
    "title": ["doctor", "professor"],
    "remark": ["hello", "thank you", "good morning"],
    "city": ["london", "paris", "berlin", "madrid", "vienna", "chicago", "boston", "tokyo", "sydney", "dublin"],
    "place": ["station", "market", "library", "museum", "hospital", "bridge"],
    "direction": ["left", "right", "north", "south", "east", "west"],
    "vehicle": ["train", "bus", "flight", "taxi"],
    "weather": ["sunny", "cloudy", "windy", "cold"],
    "music": ["jazz", "classical", "piano"],
    "chore": ["water the plants", "feed the cat", "wash the car", "walk the dog"],
    "food": ["apples", "lemons", "carrots", "onions", "tomatoes", "bananas", "potatoes", "cookies"],
    "container": ["bottles", "boxes", "glasses"],
    "drink": ["milk", "water", "juice", "coffee", "sugar"],
    "letter": ["b", "h", "k", "l", "q", "r", "w", "x"],
    "digit": ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
    "unit": ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
    "count": ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"],
    "teen": [
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ],
    "tens": ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"],
    "number": [
        "{teen}",
        "{teen}",
        "{tens}",
        "{tens} {unit}",
        "{tens} {unit}",
        "{unit} hundred and {teen}",
        "{unit} thousand {unit} hundred",
    ],
    "hour": [
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
    ],
    "clock": ["half past {hour}", "quarter past {hour}", "quarter to {hour}", "{hour} {minutes}", "noon", "midnight"],
    "minutes": ["fifteen", "twenty", "thirty", "forty", "fifty", "twenty five"],
    "weekday": ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"],
    "month": [
        "january",
        "february",
        "march",
        "april",
        "may",
        "june",
        "july",
        "august",
        "september",
        "october",
        "november",
        "december",
    ],
    "early": ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"],
    "ordinal": [
        "{early}",
        "{early}",
        "{early}",
        "{early}",
        "{early}",
        "tenth",
        "eleventh",
        "twelfth",
        "twentieth",
        "twenty {early}",
        "twenty {early}",
        "twenty {early}",
        "twenty {early}",
        "thirtieth",
    ],
    "date": ["{weekday} the {ordinal} of {month}", "the {ordinal} of {month}", "{month} the {ordinal}"],
}

SYMBOL = re.compile(r"\{(\w+)\}")
REPEATED = re.compile(r"\[([^][]*)\]\*(\d)")  # the innermost brackets


def vocabulary():
    """The set of words that the grammar can make."""
    texts = (REPEATED.sub(r"\1", text) for options in GRAMMAR.values() for text in options)
    return {word for text in texts for word in SYMBOL.sub(" ", REPEATED.sub(r"\1", text)).split()}


def spell_out(text):
    """``[zero]*2 seven`` -> ``zero zero seven``; brackets may stand in brackets."""
    while (spelt := REPEATED.sub(lambda match: " ".join([match[1]] * int(match[2])), text)) != text:
        text = spelt
    return text


def set_of(sentence):
    """The one set (``train``, ``dev`` or ``test``) in which this sentence may occur.

    By a checksum of the text: 1/8 of all possible sentences are for test and 1/8 for dev, whatever
    the size and the seed of the corpus, so no sentence of one set ever occurs in another.
    """
    return {0: "test", 1: "dev"}.get(zlib.crc32(sentence.encode()) % 8, "train")


class Generator:
    """Endless sentences of one set, deterministic by seed.

    Every symbol deals its alternatives from a shuffled deck and shuffles anew when the deck is empty,
    so all alternatives, and with them all words, stay about equally frequent.
    """

    def __init__(self, name, seed, start="sentence", grammar=None):
        """``name`` is one of ``SETS``, ``start`` the symbol of a sentence; raises ValueError for another set."""
        if name not in SETS:
            raise ValueError(f"set {name!r} is not one of {', '.join(SETS)}")
        self._name, self._start = name, start
        self._random = random.Random(f"{start}s {name} {seed}")
        self._grammar = GRAMMAR if grammar is None else grammar
        self._decks = {symbol: [] for symbol in self._grammar}

    def _deal(self, symbol):
        deck = self._decks[symbol]
        if not deck:
            deck.extend(self._grammar[symbol])
            self._random.shuffle(deck)
        return SYMBOL.sub(lambda match: self._deal(match[1]), deck.pop())

    def sentence(self):
        """The next sentence."""
        while True:
            sentence = spell_out(self._deal(self._start))
            if set_of(sentence) == self._name:
                return sentence

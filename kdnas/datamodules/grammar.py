"""A synthetic natural-language-inference task: sentences, and labels that follow from their logic.

A sentence counts the things of a kind that have, or lack, a property::

    not all small dogs are running quietly in the park

**Words.** Kinds and properties are conjunctions of words. The words of one dimension (nouns, verbs, places ...) form
trees. A word implies the words above it (poodles are dogs), and two words of a dimension exclude each other unless one
is above the other (no dogs are cats, and nothing runs while it sleeps). Nothing else is known: there may be dogs that
are neither poodles nor beagles, and the dimensions are independent. A name is a noun that holds of exactly one thing.

**Existence.** A sentence about a kind implies that it exists: a pair is judged in the worlds where the kinds of both
sentences have members. So "all dogs are running" implies "some dogs are running" and contradicts "no dogs are running".

**Labels.** A premise entails a hypothesis if no such world makes the first true and the second false, contradicts it
if none makes both true, and is neutral otherwise. `consistent` decides both questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from random import Random
from typing import NamedTuple

from transformers import BertTokenizer

ENTAILMENT, NEUTRAL, CONTRADICTION = range(3)
"""The label ids of GLUE's MNLI."""
CLASSES = ("entailment", "neutral", "contradiction")
PATHS: dict[str, tuple[str, ...]] = {
    "size": ("small", "big"),
    "noun": (
        "animals/dogs/poodles",
        "animals/dogs/beagles",
        "animals/cats",
        "animals/birds/ducks",
        "people/women/anna",
        "people/women/clara",
        "people/men/ben",
        "people/men/david",
        "people/children",
    ),
    "verb": (
        "moving/running/jogging",
        "moving/running/sprinting",
        "moving/swimming",
        "resting/sleeping/dozing",
        "resting/sitting",
    ),
    "manner": ("quietly", "loudly"),
    "place": (
        "outdoors/in the park",
        "outdoors/in the garden",
        "indoors/in the house/in the kitchen",
        "indoors/at the office",
    ),
}
"""Each dimension's trees, as the paths from the most general word to the most specific ones."""
OPTIONAL = {"size": 0.4, "manner": 0.3, "place": 0.6}
"""The dimensions that a sentence may leave out, with the probability that it has them."""
NAMES = frozenset({"anna", "clara", "ben", "david"})
WORDS = {name: tuple(dict.fromkeys("/".join(paths).split("/"))) for name, paths in PATHS.items()}
DIMENSION = {word: name for name, words in WORDS.items() for word in words}
ABOVE: dict[str, frozenset[str]] = {}
"""Each word with all words that it implies, itself included."""
for _path in (path for paths in PATHS.values() for path in paths):
    _steps = _path.split("/")
    ABOVE |= {word: frozenset(_steps[: depth + 1]) for depth, word in enumerate(_steps)}


class Count(NamedTuple):
    """How many of a kind have (`inside`) or lack a property: `number` or more (`at_least`), or fewer."""

    number: int
    inside: bool
    at_least: bool


OF_KINDS = {
    "all {} are {}": Count(1, inside=False, at_least=False),
    "no {} are {}": Count(1, inside=True, at_least=False),
    "some {} are {}": Count(1, inside=True, at_least=True),
    "some {} are not {}": Count(1, inside=False, at_least=True),
    "not all {} are {}": Count(1, inside=False, at_least=True),
    "at least two {} are {}": Count(2, inside=True, at_least=True),
    "fewer than two {} are {}": Count(2, inside=True, at_least=False),
}
OF_NAMES = {  # exactly one thing has the name, so "all" and "some" are equal
    "{} is {}": Count(1, inside=False, at_least=False),
    "{} is not {}": Count(1, inside=True, at_least=False),
}
PATTERNS = OF_KINDS | OF_NAMES


@dataclass(frozen=True)
class Meaning:
    """A count of the things of a kind with regard to a property; both are conjunctions of words."""

    kind: frozenset[str]
    property: frozenset[str]
    count: Count

    def denied(self) -> Meaning:
        number, inside, at_least = self.count
        if self.kind <= NAMES:  # the one thing either has the property or lacks it
            return replace(self, count=Count(number, not inside, at_least))
        return replace(self, count=Count(number, inside, not at_least))


@dataclass(frozen=True)
class Sentence:
    """A pattern, and a word of each dimension ("" where it is left out)."""

    pattern: str
    size: str
    noun: str
    verb: str
    manner: str
    place: str

    def __str__(self) -> str:
        parts = (self.size, self.noun), (self.verb, self.manner, self.place)
        return self.pattern.format(*(" ".join(filter(None, part)) for part in parts))

    @property
    def meaning(self) -> Meaning:
        kind = frozenset({self.size, self.noun} - {""})
        return Meaning(kind, frozenset({self.verb, self.manner, self.place} - {""}), PATTERNS[self.pattern])


@cache
def implied(words: frozenset[str]) -> frozenset[str]:
    """Returns all words that hold of a thing of which the given words hold."""
    return frozenset[str]().union(*(ABOVE[word] for word in words))


@cache
def compatible(words: frozenset[str]) -> bool:
    """Returns whether no two of the words exclude each other."""
    return not any(
        DIMENSION[one] == DIMENSION[other] and one not in ABOVE[other] and other not in ABOVE[one]
        for one, other in combinations(words, 2)
    )


def consistent(one: Meaning, other: Meaning) -> bool:
    """Returns whether some world, with members of both kinds, makes both true.

    Claims of "at least" and of existence require things; claims of "fewer" are rules about all things of a kind, with
    `number - 1` exceptions. Give each required thing only the words that it must have. If every one of them can keep
    the rules, together they are such a world; if one cannot, there is none. (A rule about two does not bind one thing.)
    """
    rules = [claim for claim in (one, other) if not claim.count.at_least]
    return all(
        possible(has, lacks, [rule for rule in rules if rule.count.number <= number])
        for claim in (one, other)
        for number, has, lacks in required(claim)
    )


def required(claim: Meaning) -> Iterator[tuple[int, frozenset[str], frozenset[str] | None]]:
    """Yields the things that must exist: how many, the words that hold of each, and words that must not all hold."""
    yield 1, claim.kind, None
    number, inside, at_least = claim.count
    if at_least:
        yield (number, claim.kind | claim.property, None) if inside else (number, claim.kind, claim.property)


def possible(has: frozenset[str], lacks: frozenset[str] | None, rules: list[Meaning]) -> bool:
    """Returns whether a thing of which all words of `has`, but not all of `lacks`, hold can keep the rules."""
    # One pass is enough: a rule adds properties and no kinds, so it never makes another rule apply.
    rules = [rule for rule in rules if rule.kind <= implied(has)]
    known = implied(has.union(*(rule.property for rule in rules if not rule.count.inside)))
    forbidden = [rule.property for rule in rules if rule.count.inside] + ([lacks] if lacks is not None else [])
    return compatible(known) and not any(words <= known for words in forbidden)


def relation(premise: Sentence, hypothesis: Sentence) -> int:
    one, other = premise.meaning, hypothesis.meaning
    if not consistent(one, other.denied()):
        return ENTAILMENT
    return NEUTRAL if consistent(one, other) else CONTRADICTION


def sentence(rng: Random) -> Sentence:
    present = {name: rng.random() < OPTIONAL.get(name, 1.0) for name in WORDS}
    return well_formed("", {name: rng.choice(words) if present[name] else "" for name, words in WORDS.items()}, rng)


def variation(original: Sentence, rng: Random) -> Sentence:
    """Draws a variation of a sentence: some of its words replaced, and often its pattern."""
    words = {name: getattr(original, name) for name in WORDS}
    for name, word in words.items():
        if rng.random() < 0.22:
            words[name] = rng.choice(substitutes(name, word))
    return well_formed(original.pattern if rng.random() < 0.35 else "", words, rng)


def well_formed(pattern: str, words: dict[str, str], rng: Random) -> Sentence:
    """Makes a sentence of these words; drops the size of names, and draws a pattern if the given one does not fit."""
    fitting = OF_NAMES if words["noun"] in NAMES else OF_KINDS
    if fitting is OF_NAMES:
        words = words | {"size": ""}
    return Sentence(pattern if pattern in fitting else rng.choice(tuple(fitting)), **words)


@cache
def substitutes(name: str, word: str) -> list[str]:
    """Returns the other words of a dimension, with "" if it is optional; words above and below the word three times."""
    others = [other for other in (*WORDS[name], *[""][: name in OPTIONAL]) if other != word]
    related = [other for other in others if not word or not other or other in ABOVE[word] or word in ABOVE[other]]
    return others + 2 * related


def pairs(rows: int, seed: int) -> list[dict[str, str | int]]:
    """Draws distinct labelled pairs. They depend on the seed alone, and the first n are the same for any `rows`.

    Labels come in shuffled threes, so that every stretch of the list is balanced: slices of it are disjoint splits.
    A hypothesis is drawn first, and then varied until it has a premise for the next label. So a hypothesis alone
    carries no information about the label.
    """
    rng = Random(seed)
    found: dict[tuple[str, str], int] = {}
    due: list[int] = []
    while len(found) < rows:
        due = due or rng.sample((ENTAILMENT, NEUTRAL, CONTRADICTION), 3)
        hypothesis = sentence(rng)
        for _ in range(100):
            premise = variation(hypothesis, rng)
            pair = str(premise), str(hypothesis)
            if premise != hypothesis and pair not in found and relation(premise, hypothesis) == due[-1]:
                found[pair] = due.pop()
                break
    return [{"premise": pair[0], "hypothesis": pair[1], "label": label} for pair, label in found.items()]


def vocabulary() -> list[str]:
    return sorted({*" ".join([*PATTERNS, *ABOVE]).replace("{}", "").split()})


def tokenizer(max_length: int = 64) -> BertTokenizer:
    """Makes a BERT tokenizer with every word of the grammar as one piece."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = {piece: number for number, piece in enumerate(special + vocabulary())}
    return BertTokenizer(vocab=vocab, do_lower_case=True, model_max_length=max_length, padding_side="right")

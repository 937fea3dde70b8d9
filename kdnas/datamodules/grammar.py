"""A language-inference task made by the project itself: sentences, and labels that follow from their logic.

A sentence counts the things of a kind that have, or lack, a property::

    not all small dogs are running quietly in the park

**Words.** Kinds and properties are conjunctions of words. The words of one dimension (nouns, verbs, places ...) form
trees. A word implies the words above it (poodles are dogs), and two words of a dimension exclude each other unless one
is above the other (no dogs are cats, no one runs and sleeps). Nothing else is known: there are dogs that are neither
poodles nor beagles, and the dimensions are independent. A name is a noun that holds of exactly one thing.

**Existence.** Whoever speaks of a kind takes it to exist: a pair is judged in the worlds where the kinds of both
sentences have members. So "all dogs are running" implies "some dogs are running" and contradicts "no dogs are running".

**Labels.** A premise entails a hypothesis if no such world makes the first true and the second false, contradicts it
if none makes both true, and is neutral otherwise. Both are one question, which `consistent` decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from random import Random

from transformers import BertTokenizer

ENTAILMENT, NEUTRAL, CONTRADICTION = range(3)
"""The label ids of GLUE's MNLI."""

PATHS: dict[str, tuple[str, ...]] = {
    "size": ("small", "big"),
    "age": ("young", "old"),
    "noun": (
        "animals/mammals/dogs/poodles",
        "animals/mammals/dogs/beagles",
        "animals/mammals/cats",
        "animals/mammals/horses",
        "animals/birds/ducks",
        "animals/birds/owls",
        "people/adults/women/anna",
        "people/adults/women/clara",
        "people/adults/men/ben",
        "people/adults/men/david",
        "people/children/girls",
        "people/children/boys",
    ),
    "verb": (
        "moving/running/jogging",
        "moving/running/sprinting",
        "moving/swimming",
        "moving/dancing",
        "resting/sleeping/napping",
        "resting/sleeping/dozing",
        "resting/sitting",
    ),
    "manner": ("quietly", "loudly"),
    "place": (
        "outdoors/in the park",
        "outdoors/in the garden",
        "indoors/in the house/in the kitchen",
        "indoors/in the house/in the attic",
        "indoors/at the office",
    ),
}
"""Each dimension's words, from the most general to the most specific, in the order in which a sentence has them."""

NAMES = frozenset({"anna", "clara", "ben", "david"})

ABOVE: dict[str, frozenset[str]] = {}
"""Each word with all that it implies, itself among them."""
WORDS: dict[str, list[str]] = {}
"""The words of each dimension."""
for _dimension, _paths in PATHS.items():
    for _path in _paths:
        _steps = _path.split("/")
        ABOVE.update({word: frozenset(_steps[: depth + 1]) for depth, word in enumerate(_steps)})
    WORDS[_dimension] = list(dict.fromkeys(word for _path in _paths for word in _path.split("/")))
DIMENSION = {word: dimension for dimension, words in WORDS.items() for word in words}


@dataclass(frozen=True)
class Meaning:
    """How many things of a kind have (`inside`) or lack a property: `number` or more (`at_least`), or fewer."""

    kind: frozenset[str]
    property: frozenset[str]
    number: int
    inside: bool
    at_least: bool

    def denied(self) -> Meaning:
        """What holds where this does not. Of the one bearer of a name, that is to lack what this says it has."""
        if self.kind <= NAMES:
            return replace(self, inside=not self.inside)
        return replace(self, at_least=not self.at_least)


QUANTIFIERS: dict[str, tuple[int, bool, bool]] = {
    "all {} are {}": (1, False, False),
    "no {} are {}": (1, True, False),
    "some {} are {}": (1, True, True),
    "not all {} are {}": (1, False, True),
    "some {} are not {}": (1, False, True),
    "at least two {} are {}": (2, True, True),
    "fewer than two {} are {}": (2, True, False),
}
"""What a sentence about a kind looks like, and the `number`, `inside` and `at_least` of its meaning."""

NAMED: dict[str, tuple[int, bool, bool]] = {"{} is {}": (1, False, False), "{} is not {}": (1, True, False)}
"""The same of a name: as its bearer exists and is one, to be running is that none of the name is not running."""


@dataclass(frozen=True)
class Sentence:
    """A pattern and its words, one for each dimension; "" for a dimension that the sentence leaves open."""

    pattern: str
    size: str
    age: str
    noun: str
    verb: str
    manner: str
    place: str

    def __str__(self) -> str:
        kind = " ".join(filter(None, (self.size, self.age, self.noun)))
        return self.pattern.format(kind, " ".join(filter(None, (self.verb, self.manner, self.place))))

    @property
    def meaning(self) -> Meaning:
        kind = frozenset({self.size, self.age, self.noun} - {""})
        action = frozenset({self.verb, self.manner, self.place} - {""})
        return Meaning(kind, action, *(QUANTIFIERS | NAMED)[self.pattern])


@cache
def implied(words: frozenset[str]) -> frozenset[str] | None:
    """All that these words imply, or nothing where two of them exclude each other."""
    for one, other in combinations(words, 2):
        if DIMENSION[one] == DIMENSION[other] and one not in ABOVE[other] and other not in ABOVE[one]:
            return None
    return frozenset().union(*(ABOVE[word] for word in words))


def consistent(one: Meaning, other: Meaning) -> bool:
    """Whether some world with members of both kinds makes both true.

    Some things must exist: a member of either kind, and what an "at least" counts. Take each to be no more than it
    must be, and apply the "fewer than" rules, which say what all members of a kind must have or must not have. The
    claims are consistent exactly if no such thing breaks: all of them together are then a world. A rule that allows
    `number - 1` exceptions binds only where at least `number` things are alike.
    """
    rules = [claim for claim in (one, other) if not claim.at_least]
    return all(
        _possible(has, lacks, [rule for rule in rules if rule.number <= number])
        for claim in (one, other)
        for has, lacks, number in _witnesses(claim)
    )


def _witnesses(claim: Meaning) -> Iterator[tuple[frozenset[str], frozenset[str] | None, int]]:
    """What the claim says exists: words that hold of it, words that do not all hold of it, and how many."""
    yield claim.kind, None, 1
    if claim.at_least and claim.inside:
        yield claim.kind | claim.property, None, claim.number
    elif claim.at_least:
        yield claim.kind, claim.property, claim.number


def _possible(has: frozenset[str], lacks: frozenset[str] | None, rules: list[Meaning]) -> bool:
    """Whether a thing with these words, but not all of those, can meet the rules."""
    known = implied(has)
    if known is None:
        return False
    # One pass is enough: rules are about kinds and add properties, so no rule makes another one apply.
    binding = [rule for rule in rules if rule.kind <= known]
    known = implied(has.union(*(rule.property for rule in binding if not rule.inside)))
    if known is None or (lacks is not None and lacks <= known):
        return False
    return not any(rule.inside and rule.property <= known for rule in binding)


def relation(premise: Sentence, hypothesis: Sentence) -> int:
    """The label of a pair: 0 entailment, 1 neutral, 2 contradiction."""
    given, claim = premise.meaning, hypothesis.meaning
    if not consistent(given, claim.denied()):
        return ENTAILMENT
    return NEUTRAL if consistent(given, claim) else CONTRADICTION


OPTIONAL = {"size": 0.3, "age": 0.3, "manner": 0.3, "place": 0.7}
"""How often a sentence says something of the dimensions that it may leave open."""


def sentence(rng: Random) -> Sentence:
    """Any sentence of the grammar."""
    words = {d: rng.choice(words) if rng.random() < OPTIONAL.get(d, 1.0) else "" for d, words in WORDS.items()}
    return _well_formed(Sentence(rng.choice(list(QUANTIFIERS)), **words), rng)


def _well_formed(draft: Sentence, rng: Random) -> Sentence:
    """The draft with a pattern that fits its noun; names have no adjectives."""
    if draft.noun in NAMES:
        pattern = draft.pattern if draft.pattern in NAMED else rng.choice(list(NAMED))
        return replace(draft, pattern=pattern, size="", age="")
    return draft if draft.pattern in QUANTIFIERS else replace(draft, pattern=rng.choice(list(QUANTIFIERS)))


def variant(original: Sentence, rng: Random) -> Sentence:
    """The sentence with another pattern (or the same) and some of its words moved along their trees."""
    changed: dict[str, str] = {}
    if rng.random() < 0.7:
        changed["pattern"] = rng.choice(list(QUANTIFIERS))
    for dimension in WORDS:
        if rng.random() < 0.35:
            changed[dimension] = _neighbour(getattr(original, dimension), dimension, rng)
    return _well_formed(replace(original, **changed), rng)


def _neighbour(word: str, dimension: str, rng: Random) -> str:
    """A word above or below this one, or (one time in three) any other of the dimension; "" is above all."""
    options = [other for other in WORDS[dimension] if other != word]
    related = [other for other in options if not word or other in ABOVE[word] or word in ABOVE[other]]
    if dimension in OPTIONAL and word:
        options.append("")
        related.append("")
    return rng.choice(related if related and rng.random() < 2 / 3 else options)


def pairs(rows: int, seed: int) -> list[dict[str, str | int]]:
    """Labelled pairs, none of them twice: the same for the same seed, and a longer list begins with the shorter one.

    The labels come in shuffled threes, so that any stretch of the list is balanced: cut it to get disjoint splits.
    A hypothesis is drawn before its label, and then varied into a premise that gives this label. So the hypothesis
    alone says nothing of the label.
    """
    rng = Random(seed)
    found: dict[tuple[str, str], int] = {}
    labels: list[int] = []
    while len(found) < rows:
        labels = labels or rng.sample(range(3), 3)
        label = labels.pop()
        while True:
            hypothesis = sentence(rng)
            tries = (variant(hypothesis, rng) for _ in range(100))
            premise = next((p for p in tries if p != hypothesis and relation(p, hypothesis) == label), None)
            if premise and (str(premise), str(hypothesis)) not in found:
                found[str(premise), str(hypothesis)] = label
                break
    return [
        {"premise": premise, "hypothesis": hypothesis, "label": label} for (premise, hypothesis), label in found.items()
    ]


def vocabulary() -> list[str]:
    """Every word that a sentence can have, sorted."""
    patterns = " ".join(QUANTIFIERS | NAMED).replace("{}", " ")
    return sorted({*patterns.split(), *" ".join(ABOVE).split()})


def tokenizer(max_length: int = 64) -> BertTokenizer:
    """BERT's WordPiece over the grammar's words, each of which is one piece."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = {piece: number for number, piece in enumerate(special + vocabulary())}
    return BertTokenizer(vocab=vocab, do_lower_case=True, model_max_length=max_length, padding_side="right")

"""The built-in task: its labels against worlds, and its pairs and tokenizer against what is said of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import combinations_with_replacement, product
from random import Random

import pytest
from transformers import AutoTokenizer

from kdnas.datamodules import grammar

TRUE_IF: dict[str, Callable[[list[tuple[bool, ...]]], bool]] = {
    r"not all (.+) are (.+)": lambda things: not all(has for of_kind, has in things if of_kind),
    r"all (.+) are (.+)": lambda things: all(has for of_kind, has in things if of_kind),
    r"no (.+) are (.+)": lambda things: not any(of_kind and has for of_kind, has in things),
    r"at least two (.+) are (.+)": lambda things: sum(of_kind and has for of_kind, has in things) >= 2,
    r"fewer than two (.+) are (.+)": lambda things: sum(of_kind and has for of_kind, has in things) < 2,
    r"some (.+) are not (.+)": lambda things: any(of_kind and not has for of_kind, has in things),
    r"some (.+) are (.+)": lambda things: any(of_kind and has for of_kind, has in things),
    r"(\w+) is not (.+)": lambda things: not any(of_kind and has for of_kind, has in things),
    r"(\w+) is (.+)": lambda things: any(of_kind and has for of_kind, has in things),
}
"""English read anew: what each form says of things, each of the kind or not, and with the property or not.

The first form that matches is meant.
"""


def read(text: str) -> tuple[str, str, str]:
    """A sentence's form, kind and property."""
    form, match = next((form, match) for form in TRUE_IF if (match := re.fullmatch(form, text)))
    return form, match[1], match[2]


def things(phrases: list[str]) -> set[tuple[bool, ...]]:
    """Which phrases can hold of one thing together. A thing has a path of each dimension, or only the path's start."""
    found = {(True,) * len(phrases)}
    for paths in grammar.PATHS.values():
        known = {word for path in paths for word in path.split("/")}
        asked = [{word for word in known if re.search(rf"\b{word}\b", phrase)} for phrase in phrases]
        instances = [set(path.split("/")[:depth]) for path in paths for depth in range(path.count("/") + 2)]
        outcomes = {tuple(words <= instance for words in asked) for instance in instances}
        found = {tuple(a and b for a, b in zip(one, other, strict=True)) for one, other in product(found, outcomes)}
    return found


@cache
def label(forms: tuple[str, str], named: tuple[bool, bool], possible: frozenset[tuple[bool, ...]]) -> int:
    """The label by looking at every world of up to four things, as many as two sentences can ask for."""
    seen = set()
    for world in (w for size in range(1, 5) for w in combinations_with_replacement(sorted(possible), size)):
        sides = [[thing[:2] for thing in world], [thing[2:] for thing in world]]
        members = [sum(of_kind for of_kind, _ in side) for side in sides]
        if all(count == 1 if name else count >= 1 for count, name in zip(members, named, strict=True)):
            seen.add(tuple(TRUE_IF[form](side) for form, side in zip(forms, sides, strict=True)))
    if (True, False) not in seen:
        assert (True, True) in seen, "the premise is true in no world"
        return grammar.ENTAILMENT
    return grammar.NEUTRAL if (True, True) in seen else grammar.CONTRADICTION


def label_by_worlds(premise: str, hypothesis: str) -> int:
    sentences = [read(premise), read(hypothesis)]
    possible = things([phrase for _, kind, action in sentences for phrase in (kind, action)])
    # A thing of neither kind makes no sentence true or false.
    relevant = frozenset(thing for thing in possible if thing[0] or thing[2])
    forms, kinds, _ = zip(*sentences, strict=True)
    return label(forms, tuple(kind in grammar.NAMES for kind in kinds), relevant)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str | int]]:
    return grammar.pairs(20_000, seed=1)


def test_labels_are_those_of_all_worlds(rows):
    wrong = [row for row in rows[:600] if label_by_worlds(row["premise"], row["hypothesis"]) != row["label"]]
    assert wrong == []


def test_relation_holds_for_every_two_patterns():
    """Also for those that `pairs` rarely draws, and for sentences that have little to do with each other."""
    rng = Random(0)
    drawn: Counter[tuple[str, str]] = Counter()
    while len(drawn) < len(grammar.PATTERNS) ** 2:
        premise = grammar.sentence(rng)
        hypothesis = rng.choice([grammar.variation(premise, rng), grammar.sentence(rng)])
        drawn[premise.pattern, hypothesis.pattern] += 1
        if drawn[premise.pattern, hypothesis.pattern] <= 10:
            expected = label_by_worlds(str(premise), str(hypothesis))
            assert grammar.relation(premise, hypothesis) == expected, f"{premise} / {hypothesis}"


@pytest.mark.parametrize(
    "premise, hypothesis, expected",
    [
        ("all dogs are running", "some poodles are moving", grammar.ENTAILMENT),
        ("all animals are sleeping", "no big cats are moving", grammar.ENTAILMENT),
        ("anna is jogging in the park", "some women are running outdoors", grammar.ENTAILMENT),
        ("at least two dogs are running", "not all dogs are running", grammar.NEUTRAL),
        ("fewer than two dogs are running", "no dogs are running", grammar.NEUTRAL),
        ("some women are sleeping", "anna is sleeping", grammar.NEUTRAL),
        ("no animals are moving", "all small dogs are running", grammar.CONTRADICTION),
        ("no people are moving", "ben is swimming", grammar.CONTRADICTION),
    ],
)
def test_worlds_give_the_labels_that_people_would(premise, hypothesis, expected):
    """What the other tests measure by is sound itself."""
    assert label_by_worlds(premise, hypothesis) == expected


def test_pairs_differ_and_are_many(rows):
    texts = {(row["premise"], row["hypothesis"]) for row in rows}
    assert len(texts) == len(rows) == 20_000
    assert all(premise != hypothesis for premise, hypothesis in texts)
    assert len({text for pair in texts for text in pair}) > 10_000


@pytest.mark.parametrize("part", [slice(None), slice(0, 1_000), slice(1_001, 1_500), slice(0, None, 3)])
def test_labels_are_balanced(rows, part):
    counts = Counter(row["label"] for row in rows[part])
    assert set(counts) == {0, 1, 2}
    if part.step is None:
        assert max(counts.values()) - min(counts.values()) <= 2
    else:  # every third is balanced by chance
        assert max(counts.values()) < 1.1 * min(counts.values())


def test_seed_decides(rows):
    assert grammar.pairs(500, seed=1) == rows[:500]
    assert grammar.pairs(500, seed=2) != rows[:500]


def test_hypothesis_says_nothing_of_the_label(rows):
    """Guessing from the hypothesis' words, each weighed by itself, is no better than chance."""
    counts: Counter[tuple[str, int]] = Counter()
    for row in rows:
        counts.update((word, row["label"]) for word in set(row["hypothesis"].split()))
    for word in {word for word, _ in counts}:
        share = [counts[word, label] / sum(counts[word, other] for other in range(3)) for label in range(3)]
        assert max(share) < 0.4, word


def test_tokenizer_knows_every_word(rows, tmp_path):
    tokenizer = grammar.tokenizer(max_length=32)
    tokenizer.save_pretrained(tmp_path)
    texts = [row["premise"] for row in rows[:4_000]], [row["hypothesis"] for row in rows[:4_000]]
    assert set(" ".join(texts[0]).split()) == set(grammar.vocabulary())
    encoded = tokenizer(*texts)
    assert not any(tokenizer.unk_token_id in ids for ids in encoded["input_ids"])
    assert max(map(len, encoded["input_ids"])) <= 32
    assert tokenizer.decode(encoded["input_ids"][0]) == f"[CLS] {texts[0][0]} [SEP] {texts[1][0]} [SEP]"

    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(*texts) == encoded
    assert (type(again), len(again), again.model_max_length) == (type(tokenizer), len(tokenizer), 32)
    assert again.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def test_tokenizer_makes_bert_inputs():
    tokenizer = grammar.tokenizer()
    encoded = tokenizer(["All dogs are running"], ["no dogs are"], padding="max_length", max_length=12)
    pieces = "[CLS] all dogs are running [SEP] no dogs are [SEP] [PAD] [PAD]"
    assert " ".join(tokenizer.convert_ids_to_tokens(encoded["input_ids"][0])) == pieces
    assert encoded["token_type_ids"] == [[0] * 6 + [1] * 4 + [0] * 2]
    assert encoded["attention_mask"] == [[1] * 10 + [0] * 2]

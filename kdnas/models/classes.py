"""The names of classes in a model's config, and the order of the teacher's classes."""

import re
from collections.abc import Sequence

from transformers import PreTrainedConfig

from kdnas.base.errors import ConfigError

UNNAMED = re.compile(r"(label|class)[ _-]?\d+", re.IGNORECASE)


def name_classes(config: PreTrainedConfig, count: int, names: Sequence[str] | None = None) -> None:
    """Writes `count` classes (1 for regression) and their names into a config; without names, LABEL_0, LABEL_1, ..."""
    names = names or [f"LABEL_{i}" for i in range(count)]
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}


def names_of(config: PreTrainedConfig) -> tuple[str, ...] | None:
    """Returns the names of a model's classes, in the order of its logits; None if they are default names."""
    names = tuple(str(name) for _, name in sorted((config.id2label or {}).items()))
    unnamed = (UNNAMED.fullmatch(name) or name == str(i) for i, name in enumerate(names))
    return None if all(unnamed) else names


def plain_name(name: str) -> str:
    """Normalizes a name's case and punctuation: Not-Entailment and not_entailment are one class."""
    return "".join(filter(str.isalnum, name.casefold()))


def order_of(names: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...] | None:
    """Returns, for each name in `wanted`, its index in `names`; None if they are not the same names."""
    for form in (str, str.casefold, plain_name):
        indices = {form(name): i for i, name in enumerate(names)}
        if len(indices) == len(names) and sorted(indices) == sorted(map(form, wanted)):
            return tuple(indices[form(name)] for name in wanted)
    return None


def teacher_order(path: str, teacher: Sequence[str] | None, data: Sequence[str] | None) -> tuple[int, ...] | None:
    """Returns, for each of the data's classes, the index of its logit in the teacher's; None if all are equal.

    Raises:
        ConfigError: both have names (None for no names), and these are not the same.
    """
    if teacher is None or data is None:
        return None
    order = order_of(teacher, data)
    if order is None:
        raise ConfigError(
            f"teacher.path={path}: its classes are {', '.join(teacher)}; must be the data's, {', '.join(data)} "
            "(id2label in its config.json names them; task.labels names classes that are numbers in the data)"
        )
    return None if order == tuple(range(len(data))) else order

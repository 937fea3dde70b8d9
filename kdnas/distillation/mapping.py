"""Which teacher layers a student layer learns from.

A mapping takes the numbers of layers of student and teacher, L_S and L_T, and returns for each student layer 1..L_S the
teacher layers (1..L_T) that it is mapped to. The embedding output, layer 0, is never mapped.
"""

from collections.abc import Callable

from kdnas.base.errors import ConfigError, chosen

Mapping = list[tuple[int, ...]]
"""At index i - 1, the teacher layers of student layer i."""


def last_1(student: int, teacher: int) -> Mapping:
    """Only the last student layer, to the last teacher layer."""
    return [()] * (student - 1) + [(teacher,)]


def last(student: int, teacher: int) -> Mapping:
    """Layer i to L_T - L_S + i."""
    return [(teacher - student + i,) for i in range(1, student + 1)]


def uniform(student: int, teacher: int) -> Mapping:
    """Layer i to floor((i - 1) L_T / L_S) + 1.

    The paper writes (i - 1) ceil(L_T / L_S) + 1, which is the same where L_S divides L_T and runs past the last
    teacher layer where it does not (12 to 10: 13, 15, ...).
    """
    return [((i - 1) * teacher // student + 1,) for i in range(1, student + 1)]


def skip(student: int, teacher: int) -> Mapping:
    """Layer i to floor(i L_T / L_S): the last to the last (PKD's skip; TinyBERT calls it uniform)."""
    return [(i * teacher // student,) for i in range(1, student + 1)]


def uniform_last(student: int, teacher: int) -> Mapping:
    """The union of `uniform` and `last` (KD-NAS v2, Eq. 2), as a set: one layer where they coincide."""
    pairs = zip(uniform(student, teacher), last(student, teacher), strict=True)
    return [tuple(sorted({*low, *high})) for low, high in pairs]


MAPPINGS: dict[str, Callable[[int, int], Mapping]] = {
    mapping.__name__: mapping for mapping in (last_1, last, uniform, uniform_last, skip)
}


def named(name: str) -> Callable[[int, int], Mapping]:
    """Returns a mapping by its name, for configs."""
    return chosen("name", name, MAPPINGS)


def map_layers(mapping: Callable[[int, int], Mapping], student: int, teacher: int) -> Mapping:
    """Returns the teacher layers of each student layer; a `ConfigError` refuses a student deeper than its teacher."""
    if student > teacher:
        raise ConfigError(
            f"architecture.num_hidden_layers={student}: must be at most {teacher}, the layers of the teacher to map to"
        )
    return mapping(student, teacher)


def pairs_of(mapping: Callable[[int, int], Mapping], student: int, teacher: int) -> list[tuple[int, int]]:
    """Returns the pairs of a student and a teacher layer of a mapping (see `map_layers`)."""
    return [(i, j) for i, layers in enumerate(map_layers(mapping, student, teacher), start=1) for j in layers]

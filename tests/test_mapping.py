"""Layer mappings against the paper's equations and tables written out by hand."""

from itertools import pairwise
from math import ceil

import pytest

from kdnas.base.errors import ConfigError
from kdnas.distillation.mapping import MAPPINGS, map_layers
from kdnas.distillation.terms import HiddenStates


def mapped(name, student, teacher):
    return map_layers(MAPPINGS[name], student, teacher)


STRATEGIES = ["last_1", "last", "uniform", "uniform_last", "skip"]
DEPTHS = [(student, teacher) for teacher in range(1, 25) for student in range(1, teacher + 1)]

# Teacher layers of each student layer, for a teacher of 12.
UNIFORM = {
    3: [1, 5, 9],
    4: [1, 4, 7, 10],
    6: [1, 3, 5, 7, 9, 11],
    10: [1, 2, 3, 4, 5, 7, 8, 9, 10, 11],
}
LAST = {
    3: [10, 11, 12],
    4: [9, 10, 11, 12],
    6: [7, 8, 9, 10, 11, 12],
    10: [3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
}
UNIFORM_LAST = {
    3: [{1, 10}, {5, 11}, {9, 12}],
    4: [{1, 9}, {4, 10}, {7, 11}, {10, 12}],
    6: [{1, 7}, {3, 8}, {5, 9}, {7, 10}, {9, 11}, {11, 12}],
    10: [{1, 3}, {2, 4}, {3, 5}, {4, 6}, {5, 7}, {7, 8}, {8, 9}, {9, 10}, {10, 11}, {11, 12}],
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_mapping_is_one_set_of_teacher_layers_a_student_layer(strategy):
    for student, teacher in DEPTHS:
        mapping = mapped(strategy, student, teacher)
        assert len(mapping) == student
        for layers in mapping:
            assert len(set(layers)) == len(layers)
            assert all(1 <= layer <= teacher for layer in layers)
            if strategy != "last_1":
                assert len(layers) in ((1, 2) if strategy == "uniform_last" else (1,))


@pytest.mark.parametrize("strategy", ["last_1", "last", "uniform_last", "skip"])
def test_the_last_layer_learns_from_the_last(strategy):
    assert all(teacher in mapped(strategy, student, teacher)[-1] for student, teacher in DEPTHS)


def test_last_1_maps_nothing_else():
    assert mapped("last_1", 3, 12) == [(), (), (12,)]
    assert mapped("last_1", 1, 1) == [(1,)]


def test_last_keeps_to_the_end_of_the_teacher():
    for student, teacher in DEPTHS:
        layers = [layer for (layer,) in mapped("last", student, teacher)]
        assert layers == list(range(teacher - student + 1, teacher + 1))


def test_uniform_starts_at_the_first_layer_and_keeps_its_stride():
    for student, teacher in DEPTHS:
        layers = [layer for (layer,) in mapped("uniform", student, teacher)]
        strides = {b - a for a, b in pairwise(layers)}
        assert layers[0] == 1 and strides <= {teacher // student, ceil(teacher / student)}


def test_skip_ends_at_the_last_layer_and_takes_every_kth_where_the_student_divides_the_teacher():
    for student, teacher in DEPTHS:
        layers = [layer for (layer,) in mapped("skip", student, teacher)]
        strides = {b - a for a, b in pairwise([0, *layers])}
        assert layers[-1] == teacher and strides <= {teacher // student, ceil(teacher / student)}
    assert mapped("skip", 4, 12) == [(3,), (6,), (9,), (12,)]  # TinyBERT's g(m) = 3m


def test_uniform_last_is_equation_2_where_the_student_divides_the_teacher():
    seen = 0
    for student, teacher in DEPTHS:
        if teacher % student == 0:
            for i, layers in enumerate(mapped("uniform_last", student, teacher), start=1):
                equation_2 = {(i - 1) * ceil(teacher / student) + 1, teacher - student + i}
                assert set(layers) == equation_2 and max(equation_2) <= teacher
                seen += 1
    assert seen > 100


def test_equation_2_would_leave_the_teacher_where_this_does_not():
    assert [i for i in range(1, 11) if (i - 1) * ceil(12 / 10) + 1 > 12] == [7, 8, 9, 10]
    assert max(layer for layers in mapped("uniform_last", 10, 12) for layer in layers) == 12


@pytest.mark.parametrize("student", [3, 4, 6, 10])
def test_the_papers_depths(student):
    assert mapped("uniform", student, 12) == [(layer,) for layer in UNIFORM[student]]
    assert mapped("last", student, 12) == [(layer,) for layer in LAST[student]]
    assert [set(layers) for layers in mapped("uniform_last", student, 12)] == UNIFORM_LAST[student]


def test_layers_that_coincide_are_mapped_once():
    for teacher in range(1, 25):
        assert mapped("uniform_last", teacher, teacher) == [(layer,) for layer in range(1, teacher + 1)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_student_deeper_than_its_teacher_is_refused_with_both_depths(strategy):
    with pytest.raises(ConfigError, match=r"num_hidden_layers=13\b.*\b12\b"):
        mapped(strategy, 13, 12)


def test_an_unknown_strategy_is_refused_with_the_choices():
    with pytest.raises(ConfigError, match=r"^mapping=every: must be one of last_1, last, uniform, uniform_last, skip$"):
        HiddenStates("every")

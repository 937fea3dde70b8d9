"""Architectures and search spaces: what belongs to them, and what is refused and how."""

import itertools
import json
import re
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from omegaconf import OmegaConf
from transformers import BertConfig, BertModel

from kdnas.base.errors import ConfigError
from kdnas.models.architecture import Architecture
from kdnas.models.space import ENUMERABLE, SearchSpace, WithinTeacher

CONF = Path(__file__).resolve().parent.parent / "conf"
NAMES = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size", "hidden_act")
VALUES = {
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_size": 192,
    "intermediate_size": 384,
    "hidden_act": "gelu",
}
TABLE_1 = {
    "num_hidden_layers": [3, 4, 6, 10, 12],
    "num_attention_heads": [2, 3, 4, 6, 12],
    "hidden_size": [192, 288, 384, 576],
    "intermediate_size": [384, 512, 576, 768, 1024, 1536, 2048, 3072],
    "hidden_act": ["gelu", "relu", "silu"],
}
PAPERS = {  # [layers, heads, hidden size, FFN size, activation]
    "kdnas_v1_arch1": (6, 12, 576, 3072, "silu"),
    "kdnas_v1_arch2": (6, 4, 576, 1536, "gelu"),
    "kdnas_v1_arch3": (4, 3, 384, 1536, "gelu"),
    "xtremedistil": (6, 12, 384, 1536, "gelu"),
    "kdnas_v2_arch1": (3, 12, 384, 1024, "gelu"),
    "kdnas_v2_arch2": (4, 4, 288, 768, "gelu"),
    "kdnas_v2_arch3": (4, 12, 576, 768, "gelu"),
    "l6_h384": (6, 12, 384, 1536, "gelu"),
    "l6_h768": (6, 12, 768, 3072, "gelu"),
    "nas_params_1": (6, 4, 384, 1024, "gelu"),
    "nas_params_2": (10, 2, 192, 1536, "gelu"),
}


def refused(*parts):
    """A ConfigError whose one line holds these parts in this order."""
    return pytest.raises(ConfigError, match="^" + ".*".join(re.escape(part) for part in parts))


# -- architectures


@pytest.mark.parametrize("name", NAMES[:4])
@pytest.mark.parametrize("value", [0, -2, 2.0, "4", True, None])
def test_a_size_that_is_no_size_is_refused(name, value):
    with refused(f"architecture.{name}={value!r}", "whole number from 1"):
        Architecture.of(VALUES | {name: value})


def test_an_activation_that_is_no_name_is_refused():
    with refused("architecture.hidden_act=3", "name of an activation"):
        Architecture.of(VALUES | {"hidden_act": 3})


def test_heads_that_do_not_divide_the_hidden_size_are_refused():
    with refused("architecture.num_attention_heads=5", "must divide architecture.hidden_size=192"):
        Architecture(3, 5, 192, 384, "gelu")


def test_an_unknown_key_is_refused_with_the_known_ones():
    with refused("architecture.num_layers=3", ", ".join(NAMES)):
        Architecture.of(VALUES | {"num_layers": 3})


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_key_is_refused_with_its_name(name):
    with refused(f"architecture.{name}: missing"):
        Architecture.of({key: value for key, value in VALUES.items() if key != name})


def test_an_architecture_reads_as_in_the_papers():
    assert str(Architecture.of(VALUES)) == "[3, 4, 192, 384, gelu]"
    assert Architecture.of(VALUES).to_dict() == VALUES


@pytest.mark.parametrize(("name", "values"), PAPERS.items())
def test_the_papers_architectures_ship_with_their_values(name, values):
    config = OmegaConf.to_container(OmegaConf.load(CONF / "architecture" / f"{name}.yaml"))
    assert Architecture.of(config) == Architecture(*values)


# -- spaces


def small(constraints=(), **dimensions):
    """36 points; five heads divide neither hidden size, which leaves 24."""
    values = {
        "num_hidden_layers": [1, 2, 3],
        "num_attention_heads": [2, 4, 5],
        "hidden_size": [8, 16],
        "intermediate_size": [16, 64],
        "hidden_act": ["gelu"],
    }
    return SearchSpace(**(values | dimensions), constraints=constraints)


def test_the_papers_space_has_2400_architectures(tmp_path):
    config = OmegaConf.load(CONF / "space" / "kdnas.yaml")
    dimensions = {name: list(config[name]) for name in NAMES}
    assert dimensions == TABLE_1
    (tmp_path / "config.json").write_text(BertConfig(num_hidden_layers=12).to_json_string(False))
    members = SearchSpace(**dimensions, constraints=[WithinTeacher(str(tmp_path))]).members
    assert len(members) == len(set(members)) == 2400


def test_heads_that_do_not_divide_leave_the_space():
    space = small()
    expected = {
        Architecture(layers, heads, hidden, ffn, "gelu")
        for layers, heads, hidden, ffn in itertools.product((1, 2, 3), (2, 4), (8, 16), (16, 64))
    }
    assert set(space.members) == expected and space.size == len(space.members) == 24
    assert Architecture(1, 2, 8, 16, "gelu") in space
    assert Architecture(1, 2, 8, 32, "gelu") not in space
    assert Architecture(1, 1, 8, 16, "gelu") not in space
    assert None not in space


def test_constraints_hold_for_members_samples_and_containment():
    space = small([lambda a: a.num_hidden_layers < 3, lambda a: a.hidden_size == 8])
    assert {(a.num_hidden_layers, a.hidden_size) for a in space.members} == {(1, 8), (2, 8)}
    assert Architecture(3, 2, 8, 16, "gelu") not in space
    assert space.example in space


def test_a_space_no_deeper_than_the_teacher(teacher):
    space = small([WithinTeacher(teacher)], num_hidden_layers=[1, 4, 5, 12])
    assert {a.num_hidden_layers for a in space.members} == {1, 4}


def test_a_space_with_no_more_parameters_than_the_teacher(teacher):
    vocabulary = json.loads((Path(teacher) / "config.json").read_text())["vocab_size"]

    def parameters(**sizes):
        config = BertConfig(vocab_size=vocabulary, max_position_embeddings=128, **sizes)
        return sum(weight.numel() for weight in BertModel(config, add_pooling_layer=False).parameters())

    limit = parameters(num_hidden_layers=4, hidden_size=16, num_attention_heads=4, intermediate_size=32)
    everything = small(num_hidden_layers=[1, 2, 4], num_attention_heads=[2])
    fitting = {
        a
        for a in everything.members
        if parameters(
            num_hidden_layers=a.num_hidden_layers,
            hidden_size=a.hidden_size,
            num_attention_heads=a.num_attention_heads,
            intermediate_size=a.intermediate_size,
        )
        <= limit
    }
    assert 0 < len(fitting) < everything.size
    space = small([WithinTeacher(teacher, parameters=True)], num_hidden_layers=[1, 2, 4], num_attention_heads=[2])
    assert set(space.members) == fitting


def test_the_teachers_own_sizes_are_within_the_teacher(teacher):
    assert WithinTeacher(teacher, parameters=True)(Architecture(4, 4, 16, 32, "gelu"))


def test_sampling_without_replacement_gives_every_member_once():
    space, drawn = small(), set()
    for _ in range(24):
        candidate = space.sample(Random(0), besides=drawn)
        assert candidate in space and candidate not in drawn
        drawn.add(candidate)
    with pytest.raises(LookupError):
        space.sample(Random(0), besides=drawn)


def test_sampling_favours_no_member():
    space, rng = small(num_hidden_layers=[1], num_attention_heads=[2, 5]), Random(0)
    counts = Counter(space.sample(rng, besides=set()) for _ in range(4000))
    assert len(counts) == 4 and all(abs(count - 1000) < 120 for count in counts.values())  # 4 standard deviations


def test_a_space_too_large_to_list_is_sampled_within_its_constraints():
    sizes = range(1, 400)
    space = small([lambda a: a.intermediate_size % 2 == 0], hidden_size=range(8, 400), intermediate_size=sizes)
    assert space.size == 3 * 3 * 392 * 399 > ENUMERABLE and not space.enumerable
    rng, drawn = Random(0), set()
    for _ in range(50):
        drawn.add(space.sample(rng, besides=drawn))
    assert len(drawn) == 50 and all(candidate in space for candidate in drawn)
    assert all(a.intermediate_size % 2 == 0 and a.hidden_size % a.num_attention_heads == 0 for a in drawn)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_dimension_is_refused(name):
    with refused(f"{name}=[]", "one or more"):
        small(**{name: []})


def test_a_repeated_value_is_refused():
    with refused("hidden_size=[8, 16, 8]", "different"):
        small(hidden_size=[8, 16, 8])


def test_a_space_that_the_constraints_empty_is_refused():
    with refused("space", "36", "constraints"):
        small([lambda a: False])


@pytest.mark.parametrize(
    ("name", "value"),
    [("hidden_act", "gelu"), ("num_hidden_layers", 4), ("num_attention_heads", [0, 2]), ("hidden_size", ["8"])],
)
def test_a_dimension_that_is_no_list_of_sizes_is_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        small(**{name: value})

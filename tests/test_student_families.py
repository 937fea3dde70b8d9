"""Students of another family than the teacher's, shared layers, and spaces derived from the teacher."""

import shutil
from functools import partial

import pytest
import torch
from families import batch_of, config_of
from hydra import compose, initialize_config_dir
from objectives import objective
from transformers import AutoConfig, AutoModel, AutoTokenizer

import kdnas
from kdnas.base.config import CONF, instantiate
from kdnas.base.errors import ConfigError
from kdnas.costs.key import config_digest
from kdnas.models.architecture import Architecture
from kdnas.models.counting import count_flops, count_parameters
from kdnas.models.families import family_of
from kdnas.models.families.base import FAMILIES
from kdnas.models.features import hidden_state
from kdnas.models.forward import outputs
from kdnas.models.heads import Encoder, unfreezing_groups
from kdnas.models.loading import load_config
from kdnas.models.resizing import StudentFamily, student_config
from kdnas.models.teacher_space import within_teacher
from kdnas.modules import StudentDistiller

SMALL = Architecture(2, 2, 8, 16, "gelu")
STUDENT = Architecture(2, 3, 24, 20, "relu")
TINY = [
    "+experiment=demo",
    "student/init=random",
    "data.rows=32",
    "data.held_out=16",
    "data.batch_size=16",
    "trainer.max_epochs=1",
    "~latency",
]
TINY += ["trainer.accelerator=cpu", "trainer.precision=32-true", "++teacher.prepare=null", "outputs=online"]
TINY += ["architecture.num_hidden_layers=1", "architecture.num_attention_heads=2", "architecture.hidden_size=8"]
TINY += ["architecture.intermediate_size=12", "architecture.hidden_act=relu"]


# -- another family


OTHERS = [("roberta", name) for name in ("albert", "bert", "modernbert", "mpnet")]


@pytest.mark.parametrize(("teacher", "family"), [*OTHERS, ("modernbert", "bert"), ("bert", "deberta-v2")])
def test_a_student_of_another_family_takes_the_teachers_rows(teacher, family):
    known = config_of(teacher, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2, mlp_dropout=0.3)
    known.update(dict.fromkeys(family_of(known).attention_dropout, 0.2))
    config = student_config(known, STUDENT, StudentFamily(family, max_length=600))
    described = family_of(config)
    assert (config.model_type, described.architecture(config)) == (family, STUDENT)
    assert (config.vocab_size, config.pad_token_id, config.num_labels) == (70, 1, 3)
    assert described.positions(config) >= 600
    for name, share in described.dropouts(config).items():
        if name not in described.classifier_dropout:
            assert share == (0.2 if name in described.attention_dropout else 0.3), name
    model = Encoder().new(config, seed=0)
    batch = batch_of(9, 5)
    batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    assert outputs(model, batch, {hidden_state(2)})[hidden_state(2)].shape == (14, 24)


def test_token_types_of_the_teacher_are_taken_too():
    config = student_config(config_of("bert", type_vocab_size=2), STUDENT, StudentFamily("roberta"))
    assert config.type_vocab_size == 2
    assert student_config(config_of("roberta"), STUDENT, StudentFamily("bert")).type_vocab_size == 2
    assert student_config(config_of("bert"), STUDENT, StudentFamily("deberta-v2")).type_vocab_size == 0


@pytest.mark.parametrize("padding", [50_283, None])
def test_a_family_whose_positions_begin_after_a_large_padding_id_or_none_is_refused(padding):
    known = config_of("modernbert", vocab_size=50_368, pad_token_id=padding)
    says = (
        rf"^student\.family=roberta: positions begin after .* which is {padding or 'null'} here; must be another, as b"
    )
    with pytest.raises(ConfigError, match=says):
        student_config(known, STUDENT, StudentFamily("roberta"))
    assert student_config(known, STUDENT, StudentFamily("bert")).max_position_embeddings == 512


def test_positions_begin_after_the_tokenizers_padding_id(teacher, tmp_path, monkeypatch):
    """Not after the one that the teacher's config names, if the tokenizer pads with another."""
    shutil.copytree(teacher, tmp_path / "teacher")
    config = AutoConfig.from_pretrained(teacher)
    tokenizer, config.pad_token_id = AutoTokenizer.from_pretrained(teacher), 3
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(7)
    for part in (config, tokenizer):
        part.save_pretrained(tmp_path / "teacher")
    chosen = StudentFamily("roberta", max_length=600)
    module = StudentDistiller(str(tmp_path / "teacher"), [SMALL], objective("hidden_states"), student=chosen)
    student = module.students[0].model.config
    assert (student.pad_token_id, student.max_position_embeddings) == (7, 600 + 8)
    monkeypatch.setitem(FAMILIES, "ibert", FAMILIES["roberta"])
    with pytest.raises(ConfigError, match=r"^student\.family=ibert: must be one that can be distilled \(I-BERT only"):
        StudentDistiller(teacher, [SMALL], objective("hidden_states"), student=StudentFamily("ibert"))


def test_a_compiled_student_that_gives_attention_inputs_by_hooks_is_refused(teacher):
    made = partial(StudentDistiller, teacher, [SMALL], student=StudentFamily("rembert"), compile=True)
    with pytest.raises(
        ConfigError, match=r"^compile=true: a rembert that is compiled gives no queries, keys and values"
    ):
        made(objective("minilmv2", heads=4))
    assert made(objective("hidden_states")).trainees[0].compiled is not None


def test_the_teachers_own_family_changes_nothing():
    teacher = config_of("roberta")
    assert (
        student_config(teacher, STUDENT, StudentFamily("roberta")).to_dict()
        == student_config(teacher, STUDENT).to_dict()
    )


def test_a_bert_of_a_roberta_is_exported_with_the_robertas_tokenizer(roberta_teacher, tmp_path):
    settings = [*TINY, f"teacher.path={roberta_teacher}", f"paths.runs={tmp_path}", f"paths.output={tmp_path}/out"]
    found = kdnas.distil(*settings, "student.family=bert")
    assert found["loss"] > 0
    model, tokenizer = (auto.from_pretrained(tmp_path / "out/model") for auto in (AutoModel, AutoTokenizer))
    assert (model.config.model_type, model.config.hidden_size) == ("bert", 8)
    texts = ["all big dogs are running", "no cats"]
    teachers = AutoTokenizer.from_pretrained(roberta_teacher)
    assert tokenizer(texts)["input_ids"] == teachers(texts)["input_ids"]
    assert model(**tokenizer(texts, padding=True, return_tensors="pt")).last_hidden_state.isfinite().all()
    with pytest.raises(ConfigError, match=r"student\.family=null: .* holds a run with bert"):
        kdnas.distil(*settings)


def test_a_students_family_is_part_of_the_latencys_key():
    families = (StudentFamily(name) for name in (None, "roberta", "mpnet"))
    assert len({config_digest(student_config(config_of("bert"), STUDENT, family)) for family in families}) == 3


REFUSED = {
    "student.family=brt": r"student\.family=brt: must be null or one of albert, bert, .*, xlm-roberta",
    "student.family=ibert": r"student\.family=ibert: must be null or one of ",
    "student.family=1": r"student\.family=1: must be null or one of ",
    "student.shared=true": r"student\.shared=true: a bert has no shared layers; must be null",
    "student.shared=2": r"student\.shared=2: must be true or false",
}


@pytest.mark.parametrize("word", REFUSED)
def test_a_family_that_cannot_be_is_one_line(word, teacher):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"teacher.path={teacher}", "architecture=demo", "module.objective=null", word])
    cfg.module._target_ = "test_student_families.made"
    with pytest.raises(ConfigError, match=f"^{REFUSED[word]}") as caught:
        instantiate(cfg.module)
    assert str(caught.value).isprintable()


def made(teacher, student, **_):
    return student_config(load_config(teacher), STUDENT, student)


# -- shared layers


def test_the_layers_of_an_albert_are_shared_or_not():
    teacher, sizes = config_of("albert"), {}
    for shared in (None, True, False):
        config = student_config(teacher, Architecture(3, 4, 32, 48, "gelu"), StudentFamily(shared=shared))
        sizes[shared] = count_parameters(config)
        model = Encoder().new(config, seed=0)
        assert sum(weight.numel() for weight in model.parameters()) == sizes[shared]
        assert count_flops(config, 1, 16) == 3 * 16 * 2 * (4 * 32 * 32 + 2 * 32 * 48 + 2 * 16 * 32) + 16 * 2 * 128 * 32
        groups = unfreezing_groups(model)
        assert len(groups) == (5 if shared is False else 3)
        assert sum(weight.numel() for group in groups for weight in group) == sizes[shared]
    layer = 4 * (32 * 32 + 32) + 2 * 32 * 48 + 48 + 32 + 4 * 32  # projections, feed-forward, two norms
    assert sizes[None] == sizes[True] and sizes[False] == sizes[True] + 2 * layer
    apart = student_config(teacher, Architecture(4, 4, 32, 48, "gelu"), StudentFamily(shared=False))
    assert student_config(apart, Architecture(2, 4, 32, 48, "gelu")).num_hidden_groups == 2


# -- sizes


def test_the_parameters_of_a_gated_feed_forward_layer_are_counted():
    narrow, wide = (student_config(config_of("modernbert"), Architecture(3, 4, 32, size, "gelu")) for size in (48, 80))
    assert count_parameters(wide) - count_parameters(narrow) == 3 * 3 * 32 * 32  # two inputs and an output a layer
    assert count_flops(wide, 2, 16) - count_flops(narrow, 2, 16) == 3 * 3 * 2 * 32 * 32 * 32  # of 32 tokens


# -- a space within the teacher


@pytest.fixture(scope="module")
def bert_base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    AutoConfig.for_model("bert").save_pretrained(folder)
    return str(folder)


def test_the_space_within_bert_base(bert_base):
    space = within_teacher(bert_base, depths=3)
    assert space.dimensions["num_hidden_layers"] == (4, 8, 12)
    assert space.dimensions["num_attention_heads"] == (2, 3, 4, 6, 12)
    assert space.dimensions["hidden_size"] == (192, 384, 576, 768)
    assert {(one.hidden_size, one.intermediate_size) for one in space.members if one.hidden_size < 400} == {
        *((192, size) for size in (384, 576, 768)),
        *((384, size) for size in (768, 1152, 1536)),
    }
    assert space.size == 3 * 5 * 4 * 3
    assert Architecture(12, 12, 768, 3072, "gelu") in space


@pytest.mark.parametrize("family", ["electra", "modernbert", "mpnet"])
def test_every_teacher_has_a_space_without_more_parameters(family, tmp_path):
    config_of(family).save_pretrained(tmp_path)
    teacher = AutoConfig.from_pretrained(tmp_path)
    most = count_parameters(teacher)
    space = within_teacher(str(tmp_path), depths=2, ratios=[1.0])
    assert {one.num_hidden_layers for one in space.members} == {2, 4}
    assert {one.hidden_size for one in space.members} == {8, 16, 24, 32}
    for member in space.members[-2:]:
        assert count_parameters(student_config(teacher, member)) <= most


def test_a_space_of_another_family_or_of_layers_apart_has_no_more_parameters_than_the_teacher(tmp_path):
    config_of("albert").save_pretrained(tmp_path)
    teacher = AutoConfig.from_pretrained(tmp_path)
    most, apart = count_parameters(teacher), StudentFamily(shared=False)
    space = within_teacher(str(tmp_path), apart, depths=4, ratios=[1.0])
    assert max(count_parameters(student_config(teacher, one, apart)) for one in space.members) <= most
    assert all(one.num_hidden_layers == 1 for one in space.members if one.hidden_size == 32)


def test_dimensions_take_the_place_of_derived_ones(bert_base):
    space = within_teacher(bert_base, hidden_size=[96], num_hidden_layers=[1, 2], num_attention_heads=None)
    assert space.dimensions["hidden_size"] == (96,) and space.dimensions["intermediate_size"] == (192, 288, 384)
    given = within_teacher(bert_base, hidden_size=[96], num_hidden_layers=[1], intermediate_size=[100, 200])
    assert {one.intermediate_size for one in given.members} == {100, 200}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"depths": 0}, "depths=0: must be a whole number from 1"),
        ({"widths": [2]}, r"widths=\[2\]: must be a list of shares of the teacher's, above 0 and at most 1"),
        ({"ratios": []}, r"ratios=\[\]: must be a list of shares"),
        ({"hidden_size": 192}, r"hidden_size=192: must be a list, as \[192\]"),
        ({"hidden_size": ["a"]}, r"hidden_size=\['a'\]: must be a list of one or more different whole numbers from 1"),
        ({"hidden_size": []}, r"hidden_size=\[\]: must be a list of one or more"),
        ({"widths": 0.5}, "widths=0.5: must be a list of shares"),
        ({"ratios": "all"}, "ratios=all: must be a list of shares"),
        ({"num_hidden_layers": [13]}, "space: none of its"),
    ],
)
def test_a_derived_space_that_cannot_be_is_one_line(settings, says, bert_base):
    with pytest.raises(ConfigError, match=f"^{says}"):
        within_teacher(bert_base, **settings)

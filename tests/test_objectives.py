"""The objectives of `conf/objective`: each through `train.py`, what they are made of, and what they refuse."""

import csv

import pytest
import torch
from families import config_of
from hydra import compose, initialize_config_dir
from objectives import CONF, objective
from test_cache import data_of, forms, known
from test_distiller import SMALL, WIDE, KilledError, distil, equal_states
from test_stages import classifier  # noqa: F401 - a fixture
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
)

import kdnas
from kdnas.app.kinds import staged
from kdnas.base.config import instantiate
from kdnas.base.errors import ConfigError
from kdnas.datamodules import grammar
from kdnas.distillation.terms import AttentionMaps, Relations, SoftTargets
from kdnas.models.architecture import Architecture
from kdnas.models.features import Feature, Kind
from kdnas.models.heads import Classifier, MaskedLM
from kdnas.models.loading import load_config
from kdnas.models.resizing import student_config
from kdnas.modules import StudentDistiller
from kdnas.search.job import Job

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ODD = Architecture(2, 3, 12, 16, "gelu")
"""A student whose heads and sizes are not the teacher's, nor divisors of them."""
TEXT = ["+experiment=minilm", "data=demo", "data.rows=24", "data.held_out=8", "data.batch_size=8", "~latency"]
TEXT += ["trainer.accelerator=cpu", "trainer.max_epochs=1", "trainer.precision=32-true", "trainer.log_every_n_steps=1"]
TEXT += [f"architecture.{name}={value}" for name, value in ODD.to_dict().items()]


@pytest.fixture(scope="module")
def masked_teacher(teacher, tmp_path_factory) -> str:
    """The random teacher's sizes as a masked language model."""
    folder = tmp_path_factory.mktemp("teacher") / "masked"
    torch.manual_seed(5)
    BertForMaskedLM(BertConfig.from_pretrained(teacher, initializer_range=0.3)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(teacher).save_pretrained(folder)
    return str(folder)


def header(folder):
    with (folder / "metrics.csv").open() as file:
        return set(next(csv.reader(file)))


OBJECTIVES = {
    "hidden_states": (["objective.loss=cosine", "objective.mapping=skip"], set()),
    "minilmv2": (["objective.heads=4", "objective.pairs.v-v=2", "+objective.pairs.q-k=1"], set()),
    "autodistil": (["objective.layer=2", "outputs=memory"], set()),
    "tinybert": (["objective.maps=probabilities"], {"embeddings", "hidden_states", "attention"}),
    "distilbert": (["objective.temperature=3"], {"soft_targets", "masked_tokens", "last_state"}),
    "masked_lm": (["objective.tokens.epochs=1", "objective.representation.epochs=1", "trainer.max_epochs=null"], set()),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_trains_on_text(name, teacher, masked_teacher, tmp_path):
    """In bf16, as on most machines, from the teacher's cache where masks do not change its outputs."""
    words, terms = OBJECTIVES[name]
    path = masked_teacher if name in ("distilbert", "masked_lm") else teacher
    places = [f"teacher.path={path}", f"objective={name}", f"paths.runs={tmp_path}", f"paths.output={tmp_path / 'o'}"]
    results = kdnas.distil(*TEXT, *places, *words, "trainer.precision=bf16-mixed")
    assert {f"loss_{term}" for term in terms} | {"loss"} == set(results)
    assert {f"train/loss_{term}" for term in terms} <= header(tmp_path / "o")
    kind = AutoModelForMaskedLM if path == masked_teacher else AutoModel
    assert kind.from_pretrained(tmp_path / "o/model").config.hidden_size == 12
    cached = name not in ("distilbert", "masked_lm", "autodistil")
    assert bool(list(tmp_path.glob("outputs/*/*"))) == cached


def test_tinybert_trains_on_a_task(classifier, tmp_path):  # noqa: F811
    words = ["task=demo", "objective=tinybert", "trainer.max_epochs=null", f"teacher.path={classifier}"]
    words += [f"objective.{stage}.epochs=1" for stage in ("transfer", "prediction")]
    results = kdnas.distil(*TEXT, *words, f"paths.runs={tmp_path}", f"paths.output={tmp_path}", "data.held_out=9")
    assert set(results) == {"loss", "accuracy"}
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").config.num_labels == 3
    assert {"train/loss_attention", "val/accuracy"} <= header(tmp_path)


def test_relations_need_the_queries_keys_and_values_of_one_layer_alone(teacher):
    (stage,) = objective("minilmv2", heads=4).stages
    config = load_config(teacher)
    (term,) = stage.build(student_config(config, ODD), config).values()
    assert term.teacher == {Feature(kind, 3) for kind in (Kind.QUERY, Kind.KEY, Kind.VALUE)}
    assert term.student == {Feature(kind, 2) for kind in (Kind.QUERY, Kind.KEY, Kind.VALUE)}
    assert not list(term.parameters())


def test_the_maps_of_all_depths_are_wanted_where_layers_follow_a_pattern(tmp_path):
    """A search with a ModernBERT, whose config lists the windows of its layers."""
    grammar.tokenizer().save_pretrained(tmp_path)
    AutoModel.from_config(config_of("modernbert")).save_pretrained(tmp_path)
    module = StudentDistiller(str(tmp_path), [Architecture(1, 2, 8, 16, "gelu")], objective("tinybert"), depths=None)
    queries = {feature.layer for feature in module.teacher_features if feature.kind is Kind.QUERY}
    assert queries == {1, 2, 3, 4}


def test_tinybert_ends_with_a_tasks_predictions():
    task = {"_target_": "labelled.classification", "num_labels": 3}
    first, second = objective("tinybert", task).stages
    assert (first.name, first.epochs, second.name, second.epochs) == ("transfer", 20, "prediction", 3)
    assert isinstance(second.terms["soft_targets"], SoftTargets) and second.monitor == "accuracy"
    (only,) = objective("tinybert").stages
    assert only.epochs is None and isinstance(only.terms["attention"], AttentionMaps)


@pytest.mark.parametrize(
    ("words", "epochs", "trainer"),
    [
        (["+experiment=mnli"], [7, 7, 7], None),
        (["+experiment=mnli", "objective=tinybert"], [7, 2], None),
        (["+experiment=mnli", "objective=xtremedistil", "search.stages.mini.objective.logits.epochs=0"], [7, 7], None),
        (["objective=tinybert"], [None], 4),
        ([], [None], 4),
    ],
)
def test_mini_kd_has_the_epochs_of_its_objectives_stages(words, epochs, trainer):
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = staged(compose("search", words), Job("mini"))
    assert [stage.epochs for stage in instantiate(cfg.objective).stages] == epochs
    assert cfg.trainer.max_epochs == trainer


def test_an_objective_chooses_masks_and_outputs_that_the_command_line_can_change():
    def chosen(*words):
        with initialize_config_dir(str(CONF), version_base=None):
            cfg = compose("train", ["+experiment=minilm", *words])
        return cfg.data.get("masking"), cfg.outputs._target_.rpartition(".")[2]

    for name in ("distilbert", "masked_lm"):
        masking, outputs = chosen(f"objective={name}")
        assert masking.probability == 0.15 and not masking.whole_word and outputs == "OnlineTeacher"
        masking, outputs = chosen("data/masking=whole_word", f"objective={name}", "outputs=disk")
        assert masking.whole_word and outputs == "DiskOutputs"
    assert chosen("objective=minilmv2") == (None, "DiskOutputs")


@pytest.mark.parametrize("form", ["memory", "disk"])
def test_cached_queries_keys_and_values_are_those_of_the_models_own_modules(form, teacher, text_dataset, tmp_path):
    data, model = data_of(teacher, text_dataset), AutoModel.from_pretrained(teacher).eval()
    parts = {Kind.QUERY: "query", Kind.KEY: "key", Kind.VALUE: "value"}
    features = {Feature(kind, layer): (layer, name) for kind, name in parts.items() for layer in (1, 3)}
    asked = forms(tmp_path)[form].open(known(teacher), data.corpus, set(features), torch.device("cpu"))
    for batch in data.train_dataloader():
        found = {}
        for feature, (layer, name) in features.items():
            module = getattr(model.encoder.layer[layer - 1].attention.self, name)

            def keep(module, _, given, feature=feature, found=found):
                found[feature] = given

            module.register_forward_hook(keep)
        with torch.no_grad():
            model(**{name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")})
        real = batch["attention_mask"].bool()
        for feature, values in asked(batch, set(features)).items():  # bf16 has 8 bits
            torch.testing.assert_close(values.float(), found[feature][real], rtol=2**-8, atol=1e-6)


# -- gangs, and runs that are killed


BESIDE = (
    "+objective.hidden_states.terms.relations={_target_:kdnas.distillation.terms.Relations,heads:4,normalize:variance}"
)


def relations(teacher, *architectures):
    return StudentDistiller(teacher, architectures, objective("minilmv2", heads=4), dropout=0.0, seed=3)


def test_a_gang_learns_what_its_students_would_alone(teacher, text_dataset):
    batch = next(iter(data_of(teacher, text_dataset).train_dataloader()))
    gang = relations(teacher, SMALL, WIDE)
    gang.log = lambda *_, **__: None
    gang.training_step(batch, 0).backward()
    for student, architecture in zip(gang.students, (SMALL, WIDE), strict=True):
        alone = relations(teacher, architecture)
        alone.log = lambda *_, **__: None
        alone.training_step(batch, 0).backward()
        for (name, one), (_, other) in zip(
            student.named_parameters(), alone.students[0].named_parameters(), strict=True
        ):
            assert (one.grad is None) == (other.grad is None), name
            if one.grad is not None:
                torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_a_killed_run_ends_as_if_it_had_not_been_killed(teacher, tmp_path, monkeypatch):
    """A gang of two, with relations beside hidden states, from a cache on disk."""
    whole = distil(tmp_path / "whole", teacher, BESIDE)
    begin = StudentDistiller.on_train_epoch_start

    def killed(module):
        if module.current_epoch == 2:
            raise KilledError
        begin(module)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(StudentDistiller, "on_train_epoch_start", killed)
        distil(tmp_path / "cut", teacher, BESIDE)
    assert distil(tmp_path / "cut", teacher, BESIDE) == whole
    last = [torch.load(tmp_path / run / "last.ckpt", weights_only=True)["state_dict"] for run in ("whole", "cut")]
    equal_states(*last)
    units = [value for name, value in last[0].items() if name.endswith(".relations.uniform")]
    assert len(units) == 2 and units[0] == units[1] and units[0] != 1


# -- the masked language model's teacher


def test_a_teacher_with_a_head_is_loaded_where_its_predictions_are_needed(teacher, masked_teacher):
    both = StudentDistiller(masked_teacher, [SMALL], objective("distilbert"))
    assert both.head.of_teacher(both.teacher_features) == MaskedLM()
    both.check_teacher()
    states = StudentDistiller(teacher, [SMALL], objective("masked_lm"))
    states.check_teacher()
    with pytest.raises(ConfigError, match=f"^teacher.path={teacher}: has no head for masked tokens; must be a masked"):
        StudentDistiller(teacher, [SMALL], objective("distilbert")).check_teacher()
    model = known(masked_teacher, MaskedLM(), "bf16-mixed").load()
    words, layer = model.get_input_embeddings().weight, model.bert.encoder.layer[0].output.dense.weight
    assert (words.dtype, layer.dtype) == (
        torch.float32,
        torch.bfloat16,
    ) and model.cls.predictions.decoder.weight is words
    loaded, expected = MaskedLM().load(masked_teacher), AutoModelForMaskedLM.from_pretrained(masked_teacher)
    equal_states(loaded.state_dict(), expected.state_dict())


# -- refusals


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"pairs": {"q-x": 1}}, r"objective.pairs.q-x=1: must be the weight of one of q-q, q-k, .*, v-v"),
        ({"pairs": {"q-q": -1}}, r"objective.pairs.q-q=-1: must be a number from 0"),
        ({"pairs": {"q-q": 0, "k-k": 0, "v-v": 0}}, r"objective.pairs=.*: must be weights of which at least one .* 0"),
        ({"pairs": 3}, r"objective.pairs=3: must be weights by name, as \{q-q: 1\}"),
        ({"normalize": "std"}, r"objective.normalize=std: must be one of none, variance"),
        ({"loss": "cosine"}, r"objective.loss=cosine: must be one of kl, mse"),
        ({"layer": 0}, r"objective.layer=0: must be a whole number: from 1, or -1 for the last layer"),
        ({"student_layer": 1.5}, r"objective.student_layer=1.5: must be a whole number"),
        ({"heads": "all"}, r"objective.heads=all: must be a whole number from 1, or teacher"),
        ({"heads": 0}, r"objective.heads=0: must be a whole number from 1, or teacher"),
        (
            {"relations": {"weights": {"relations": 0}}},
            r"objective.relations.weights=.*: must be weights of which at least one is above 0",
        ),
        ({"relations": {"weights": {"maps": 1}}}, r"objective.relations.weights.maps=1: must be the weight of one of"),
    ],
)
def test_settings_of_relations_that_are_refused(settings, says):
    with pytest.raises(ConfigError, match=f"^{says}"):
        objective("minilmv2", **settings)


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("distilbert", {"temperature": 0}, "objective.temperature=0: must be a number above 0"),
        ("distilbert", {"weights": {"cosine": 1}}, "objective.weights.cosine=1: must be the weight of one of soft_tar"),
        ("tinybert", {"maps": "values"}, "objective.maps=values: must be one of scores, probabilities"),
        ("tinybert", {"loss": "l1"}, "objective.loss=l1: must be one of kl, mse, cosine"),
    ],
)
def test_settings_of_other_objectives_that_are_refused(name, settings, says):
    with pytest.raises(ConfigError, match=f"^{says}"):
        objective(name, **settings)


@pytest.mark.parametrize(
    ("settings", "architecture", "says"),
    [
        (
            {"heads": 3},
            ODD,
            r"heads=3: must be one of 1, 2, 4, which divide the student's 12 values and the teacher's",
        ),
        ({"heads": 48}, SMALL, r"heads=48: must be one of 1, 2, 4, 8, which divide the student's 8"),
        ({"layer": 5, "heads": 4}, ODD, r"layer=5: must be from 1 to 4, or from -4 to -1$"),
        ({"student_layer": -3, "heads": 4}, ODD, r"student_layer=-3: must be from 1 to 2, or from -2 to -1$"),
    ],
)
def test_models_that_do_not_fit_are_refused(settings, architecture, says, teacher):
    with pytest.raises(ConfigError, match=rf"^objective.relations.terms.relations.{says}"):
        StudentDistiller(teacher, [architecture], objective("minilmv2", **settings))


def test_the_command_names_the_setting_of_heads_that_do_not_divide(teacher, tmp_path):
    words = [*TEXT, f"teacher.path={teacher}", f"paths.runs={tmp_path}", "objective=minilmv2"]
    with pytest.raises(ConfigError, match="^objective.heads=48: must be one of 1, 2, 4, which divide"):
        kdnas.distil(*words)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_search_is_refused_for_the_first_size_that_relation_heads_do_not_divide(teacher, tmp_path):
    words = [word for word in TEXT if not word.startswith(("architecture", "~"))]
    words += ["latency.repeats=1", "latency.runs=1", "latency.patience=0", "search.candidates=1", "search.gang=1"]
    words += ["space.hidden_size=[16,8,12]", "space.num_attention_heads=[2]", "space.num_hidden_layers=[2]"]
    words += [f"teacher.path={teacher}", f"paths.runs={tmp_path}", "objective=minilmv2", "objective.heads=8"]
    with pytest.raises(ConfigError, match="^objective.heads=8: must be one of 1, 2, 4, which divide the student's 12"):
        kdnas.run_search(*words)
    assert not list(tmp_path.rglob("*.ckpt")) and not list(tmp_path.rglob("outputs/*"))


def test_a_regression_has_no_soft_targets(teacher):
    config = Classifier(1, "regression")
    student = student_config(load_config(teacher), ODD)
    config.describe(student)
    with pytest.raises(ConfigError, match="^objective: soft targets are probabilities of classes"):
        SoftTargets().build(student, student)


def test_of_queries_and_keys_of_different_widths_there_are_no_relations(teacher):
    config = load_config(teacher)
    config.num_key_value_heads = 2
    Relations({"k-v": 1}, heads=4).build(config, config)
    with pytest.raises(ConfigError, match="^pairs.q-k: of 16 and 8 values a token; must be as many$"):
        Relations({"q-k": 1}, heads=4).build(config, config)

"""A loss term of one's own, added to an objective on the command line, and the config's stages and weights."""

from math import nan
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from objectives import CONF, objective
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

import kdnas
from kdnas.app import run as runner
from kdnas.base.errors import ConfigError
from kdnas.datamodules import SyntheticNLI
from kdnas.distillation.terms import LossTerm, Mean
from kdnas.models.architecture import Architecture
from kdnas.models.features import Feature, Kind
from kdnas.modules import StudentDistiller

SMALL = Architecture(2, 2, 8, 16, "gelu")


class QueryCosine(LossTerm):
    """1 - cos(Q_S W, Q_T) of the last layers' queries, the mean over tokens."""

    def build(self, student, teacher):
        self.own, self.target = (Feature(Kind.QUERY, config.num_hidden_layers) for config in (student, teacher))
        self.student, self.teacher = frozenset({self.own}), frozenset({self.target})
        self.projection = torch.nn.Linear(self.own.width(student), self.target.width(teacher), bias=False)

    def forward(self, student, teacher, batch):
        cosine = functional.cosine_similarity(self.projection(student[self.own]), teacher[self.target].float(), dim=-1)
        return Mean(1 - cosine.mean(), batch["attention_mask"].sum())


STAGE = "objective.hidden_states"
WORDS = [f"+{STAGE}.terms.queries._target_=test_seams_terms.QueryCosine", f"+{STAGE}.weights.queries=0.25"]


def settings(folder, teacher):
    words = ["data=demo", "data.rows=24", "data.held_out=10", "data.proxy=1", "data.batch_size=4"]
    words += ["module.dropout=0", "trainer.log_every_n_steps=1", f"teacher.path={teacher}", f"paths.runs={folder}"]
    return [*words, "trainer.accelerator=cpu", "trainer.max_epochs=2", "trainer.precision=32-true"]


def train(folder, teacher, *words):
    words += ("architecture.num_hidden_layers=2", "architecture.hidden_size=8", "architecture.num_attention_heads=2")
    with initialize_config_dir(str(CONF), version_base=None):
        return runner.run(compose("train", [*settings(folder, teacher), f"paths.output={folder}", *words]))


def queries(model, batch):
    """The last layer's queries of the real tokens, caught at its linear layer in transformers' own pass."""
    caught = []
    hook = model.encoder.layer[-1].attention.self.query.register_forward_hook(lambda *given: caught.append(given[-1]))
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
    hook.remove()
    real = batch["attention_mask"].bool()
    return caught[0][real], [layer[real] for layer in states]


def check(result, folder, teacher, tolerance):
    """Compares the held-out losses of a run with those of its export and checkpoint, through transformers."""
    assert result["loss"] == pytest.approx(result["loss_hidden_states"] + 0.25 * result["loss_queries"])
    state = torch.load(folder / "best.ckpt", weights_only=True)["state_dict"]
    terms = {name.removeprefix("students.0.objectives.0."): value for name, value in state.items()}
    models = [AutoModel.from_pretrained(path).eval() for path in (folder / "model", teacher)]
    data = SyntheticNLI(tokenizer=AutoTokenizer.from_pretrained(teacher), rows=24, held_out=10, batch_size=10, seed=0)
    data.setup()
    (batch,) = data.val_dataloader()
    batch = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    (own, states), (target, targets) = (queries(model, batch) for model in models)
    cosine = functional.cosine_similarity(own @ terms["queries.projection.weight"].T, target, dim=-1)
    expected = {"loss_queries": 1 - cosine.mean().item()}
    error = states[-1] @ terms["hidden_states.projections.0.weight"].T - targets[-1]
    expected["loss_hidden_states"] = error.square().mean().item()
    assert result == pytest.approx(expected | {"loss": result["loss"]}, rel=tolerance)


def test_a_term_of_ones_own_is_trained_and_logged(teacher, tmp_path):
    result = train(tmp_path, teacher, *WORDS, "outputs=online", "objective.mapping=last_1", "~latency")
    check(result, tmp_path, teacher, 1e-4)
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert {"train/loss_queries", "val/loss_queries", "val/loss_hidden_states"} <= set(header.split(","))


def test_a_term_of_ones_own_goes_through_a_search_with_kept_outputs(teacher, tmp_path):
    words = ["space.num_hidden_layers=[1,2]", "space.num_attention_heads=[2]", "space.hidden_size=[8]"]
    words += ["space.intermediate_size=[16]", "search.episodes=1", "search.candidates=2", "search.finalists=1"]
    words += ["reward=parameters", "latency.accelerators=[cpu]", "latency.repeats=1", "latency.runs=1"]
    words += ["latency.length=8", "search.stages.mini.trainer.max_epochs=1", "objective.mapping=last_1"]
    found = kdnas.run_search(*settings(tmp_path, teacher), *WORDS, *words, f"search.dir={tmp_path}/search")
    assert found["held-out loss_queries"].notna().all()
    losses = ("loss", "loss_queries", "loss_hidden_states")
    result = {name: found[f"full held-out {name}"][0] for name in losses}
    check(result, Path(found["export"][0]).parent, teacher, 2e-2)
    features = {path.name for path in tmp_path.glob("outputs/*/[!.]*")}
    assert features == {"hidden_state-04-token", "query-04-token"}


def test_a_weight_of_no_term_is_refused():
    with pytest.raises(
        ConfigError, match=r"^objective.hidden_states.weights.others=1: must be the weight of one of hidden_states$"
    ):
        objective("hidden_states", hidden_states={"weights": {"others": 1}})


@pytest.mark.parametrize("weight", [nan, "much", None, True, -1])
def test_a_weight_that_is_no_number_is_refused(weight):
    with pytest.raises(ConfigError, match=r"weights.hidden_states=.*: must be a number from 0$"):
        objective("hidden_states", hidden_states={"weights": {"hidden_states": weight}})


@pytest.mark.parametrize("name", ["values", "keys", "training", "forward", "type", "a.b", "a/b", ""])
def test_a_term_has_a_name_that_a_submodule_can_have(name):
    with pytest.raises(
        ConfigError, match=rf"^objective.hidden_states.terms.{name}=.*: must be .* another name: letters"
    ):
        objective("hidden_states", hidden_states={"terms": {name: {"_target_": "test_seams_terms.QueryCosine"}}})


class Infinite(QueryCosine):
    """A loss that is no number, with gradients that are none."""

    def forward(self, student, teacher, batch):
        mean = super().forward(student, teacher, batch)
        return Mean(mean.value * nan, mean.count)


def test_a_term_of_weight_0_is_in_the_log_alone(teacher):
    beside = {"terms": {"beside": {"_target_": "test_seams_terms.Infinite"}}, "weights": {"beside": 0}}
    losses, states = [], []
    for terms in ({}, beside):
        module = StudentDistiller(teacher, [SMALL], objective("hidden_states", hidden_states=terms), dropout=0.0)
        logged = module.logged = {}
        module.log = lambda name, value, logged=logged, **_: logged.update({name: value})
        loss = module.training_step(AutoTokenizer.from_pretrained(teacher)(["no cats"], return_tensors="pt"), 0)
        loss.backward()
        losses.append(loss.item())
        states.append({name: value.grad for name, value in module.named_parameters() if value.grad is not None})
    assert losses[0] == losses[1] and states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert module.students[0].weighted({"hidden_states": 2.0, "beside": nan}) == 2.0
    assert logged["train/loss_beside"].isnan() and logged["train/loss_hidden_states"] == losses[0]


def test_the_error_of_a_term_names_the_setting_that_it_refers_to():
    with pytest.raises(ConfigError, match=r"^objective.mapping=every: must be one of last_1, last, uniform, "):
        objective("hidden_states", mapping="every")
    with pytest.raises(ConfigError, match=r"^objective.representation.loss=l1: must be one of kl, mse, cosine$"):
        objective("masked_lm", representation={"loss": "l1"})

"""The fine-tuner: its metrics against scikit-learn's and SciPy's, and that it learns."""

import copy
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from labelled import classification, regression
from omegaconf import OmegaConf
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch.utils.data import DataLoader
from torchmetrics import MeanSquaredError
from transformers import DataCollatorWithPadding

from kdnas.base.config import instantiate
from kdnas.base.errors import ConfigError
from kdnas.datamodules.synthetic import Untrained
from kdnas.models.checkpoints import ModelSource, Pretrained
from kdnas.models.features import LOGITS
from kdnas.modules import FineTuner

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

TASKS = sorted((Path(__file__).resolve().parent.parent / "conf" / "task").glob("*.yaml"))
TASKS = [path for path in TASKS if path.stem != "own"]  # which has no number of classes yet
GLUE = {  # the metrics that GLUE reports of each task, the deciding one first
    "cola": {"matthews": matthews_corrcoef},
    "mrpc": {"f1": f1_score, "accuracy": accuracy_score},
    "qqp": {"f1": f1_score, "accuracy": accuracy_score},
    "stsb": {"pearson": lambda y, x: pearsonr(x, y)[0], "spearman": lambda y, x: spearmanr(x, y)[0]},
}
LABELS = {"mnli": 3, "demo": 3, "stsb": 1}


def loaded(path):
    """A task's config, where others find it."""
    return OmegaConf.create({"task": OmegaConf.load(path)}).task


def trainer(**settings):
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )


class Answers(torch.nn.Module):
    """Stands for a model whose logits are known."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace()

    @staticmethod
    def say(model, batch, features):
        return {LOGITS: batch["logits"]}


class Ready(ModelSource):
    def __call__(self, head):
        return Answers(), None


@pytest.fixture
def answers(monkeypatch):
    monkeypatch.setattr("kdnas.modules.finetuner.outputs", Answers.say)


def test_a_fine_tuner_needs_a_task():
    with pytest.raises(ConfigError, match="^task=null: must be a task, as task=rte"):
        FineTuner(Ready(), None)


def test_dropout_is_on_while_a_folder_is_trained(teacher):
    module = FineTuner(Pretrained(teacher), regression())
    assert all(part.training for part in module.modules())


@pytest.mark.usefixtures("answers")
@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_the_metrics_of_every_task(path):
    task = loaded(path)
    expected = GLUE.get(task.name, {"accuracy": accuracy_score})
    assert list(task.metrics) == list(expected) and task.num_labels == LABELS.get(task.name, 2)

    rng = np.random.default_rng(0)
    count, batch = 101, 8
    if task.num_labels == 1:
        labels = rng.uniform(0, 5, count).round(1).astype(np.float32)  # with ties, as in STS-B
        logits = (labels + rng.normal(0, 1.5, count)).round(1).astype(np.float32)[:, None]
        predicted = logits[:, 0]
    else:
        labels = rng.choice(task.num_labels, count, p=[0.2, 0.8] if task.num_labels == 2 else None)
        logits = rng.normal(size=(count, task.num_labels)).astype(np.float32)
        logits[np.arange(count), labels] += 0.5
        predicted = logits.argmax(1)
    cuts = range(0, count, batch)
    batches = [
        {"logits": torch.tensor(logits[i : i + batch]), "labels": torch.tensor(labels[i : i + batch])} for i in cuts
    ]
    module = FineTuner(Ready(), instantiate(task))
    run = trainer()
    for _ in range(2):  # and nothing of one validation is left in the next
        run.validate(module, DataLoader(batches, batch_size=None), verbose=False)
        assert module.results[0].keys() == expected.keys()
        for name, metric in expected.items():
            assert module.results[0][name] == pytest.approx(metric(labels, predicted), abs=1e-4)
            assert run.callback_metrics[f"val/{name}"].item() == module.results[0][name]
    assert module.monitor == next(iter(expected))


CONSTANTS = {  # labels, then predictions: of one class, of one value, or not numbers at all
    "one class predicted": ([0, 1, 1, 0, 1], [1, 1, 1, 1, 1]),
    "the other one": ([0, 1, 1, 0, 1], [0, 0, 0, 0, 0]),
    "one class in the labels": ([1, 1, 1, 1, 1], [0, 1, 1, 0, 1]),
    "one class in both": ([1, 1, 1, 1, 1], [1, 1, 1, 1, 1]),
    "never the right one": ([1, 1, 1, 1, 1], [0, 0, 0, 0, 0]),
    "diverged": ([0, 1, 1, 0, 1], [np.nan] * 5),
}


@pytest.mark.usefixtures("answers")
@pytest.mark.parametrize("case", CONSTANTS)
@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_every_metric_has_a_value_where_nothing_is_told_apart(path, case):
    """Those of scikit-learn; a correlation that SciPy calls undefined is 0."""
    task = loaded(path)
    expected = GLUE.get(task.name, {"accuracy": accuracy_score})
    labels, predicted = np.array(CONSTANTS[case], dtype=float)
    if task.num_labels == 1:
        logits, labels = predicted[:, None], labels / 3  # a third is no float that sums without error
    else:
        logits, labels = np.eye(task.num_labels)[np.nan_to_num(predicted).astype(int)], labels.astype(int)
        logits = np.where(np.isnan(predicted)[:, None], np.nan, logits)
        predicted = np.nan_to_num(predicted)  # the first class, for want of a better one
    batches = [
        {"logits": torch.tensor(logits[i : i + 2]).float(), "labels": torch.tensor(labels[i : i + 2])}
        for i in range(0, 5, 2)
    ]
    module = FineTuner(Ready(), instantiate(task))
    trainer().validate(module, DataLoader(batches, batch_size=None), verbose=False)
    for name, metric in expected.items():
        value = np.nan_to_num(metric(labels, predicted)) if np.isfinite(predicted).all() else 0.0
        assert module.results[0][name] == pytest.approx(value, abs=1e-6)


@pytest.mark.usefixtures("answers")
def test_a_further_split_has_figures_of_its_own_and_decides_nothing():
    def loader(logits, labels):
        batches = [{"logits": torch.eye(3)[logits], "labels": torch.tensor(labels)}]
        return DataLoader(batches, batch_size=None)

    task = loaded(next(path for path in TASKS if path.stem == "mnli"))
    module = FineTuner(Ready(), instantiate(task), also=task.also)
    run = trainer()
    matched, mismatched = loader([0, 1, 2, 2], [0, 1, 2, 0]), loader([0, 1, 2, 2, 0], [0, 1, 1, 1, 1])
    for _ in range(2):
        run.validate(module, [matched, mismatched], verbose=False)
        assert module.results == [{"accuracy": 0.75, "accuracy_mismatched": pytest.approx(0.4)}]
    assert module.monitor == "accuracy"


def batches_of(tokenizer, rows, size=8):
    features = [tokenizer(text) | {"labels": label} for text, label in rows]
    return DataLoader(features, batch_size=size, collate_fn=DataCollatorWithPadding(tokenizer))


def test_it_learns_to_tell_dogs_from_cats():
    small = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    rows = [
        (f"{some} {noun} are {doing}", label)
        for some in ("all", "no", "some", "not all", "at least two", "fewer than two")
        for doing in ("running", "sleeping", "dancing", "sitting")
        for label, noun in enumerate(("dogs", "cats"))
    ]
    torch.manual_seed(0)
    module = FineTuner(Untrained(**small), classification(), learning_rate=1e-2)
    train, held_out = (batches_of(module.tokenizer, part) for part in (rows[16:], rows[:16]))
    run = trainer(max_epochs=6, gradient_clip_val=1.0)
    run.fit(module, train, held_out)
    assert module.results == [{"accuracy": 1.0}]


def test_a_regressor_is_trained_on_the_mean_squared_error(teacher):
    torch.manual_seed(0)
    task = regression(metrics={"error": MeanSquaredError()})
    module = FineTuner(Pretrained(teacher), task, learning_rate=0.0)
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    start = copy.deepcopy(module.model).eval()
    rows = [("all dogs are running", 4.5), ("no cats are sleeping in the park", -1.0), ("some owls are moving", 0.25)]
    loader = batches_of(module.tokenizer, rows)
    run = trainer(max_epochs=1)
    run.fit(module, loader, loader)
    batch = dict(next(iter(loader)))
    labels = batch.pop("labels").numpy()
    with torch.no_grad():
        predicted = start(**batch).logits.numpy()[:, 0]
    expected = np.mean((predicted - labels) ** 2)
    assert run.callback_metrics["train/loss"].item() == pytest.approx(expected, rel=1e-4)
    assert module.results[0]["error"] == pytest.approx(expected, rel=1e-4)


def test_a_classifier_is_trained_on_the_cross_entropy(teacher):
    torch.manual_seed(0)
    module = FineTuner(Pretrained(teacher), classification(3), learning_rate=0.0)
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    start = copy.deepcopy(module.model).eval()
    loader = batches_of(module.tokenizer, [("all dogs are running", 2), ("no cats are sleeping in the park", 0)])
    run = trainer(max_epochs=1)
    run.fit(module, loader, loader)
    batch = dict(next(iter(loader)))
    labels = batch.pop("labels").numpy()
    with torch.no_grad():
        logits = start(**batch).logits.double().numpy()
    expected = np.mean(np.log(np.exp(logits).sum(1)) - logits[[0, 1], labels])
    assert run.callback_metrics["train/loss"].item() == pytest.approx(expected, rel=1e-4)

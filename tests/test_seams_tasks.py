"""A task from outside of the package: any number of tags a row, named in a config folder of the user's own."""

import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from sklearn.metrics import f1_score
from torch.nn import functional
from torchmetrics.classification import MultilabelF1Score
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import kdnas
from kdnas.app import run as runner
from kdnas.base.errors import ConfigError
from kdnas.models.heads import Classifier
from kdnas.tasks import LabelledTask
from kdnas.tasks.labels import LabelError, Labels

CONF = Path(__file__).resolve().parent.parent / "conf"
NOUNS = ("dogs", "cats", "birds")


# -- what a user writes


class TagLabels(Labels):
    def encode(self, rows, column):
        """[0, 2] becomes [1, 0, 1]."""
        return rows.map(lambda row: {column: [int(tag in row[column]) for tag in range(3)]})


class Tags(LabelledTask):
    def __init__(self, **settings):
        self.head = Classifier(3, "multi_label_classification")
        super().__init__(3, **settings)

    def loss(self, logits, labels):
        return functional.binary_cross_entropy_with_logits(logits.float(), labels.float())

    def decode(self, logits):
        return (logits > 0).long()

    def example(self):
        return torch.zeros(2, 3).long(), torch.zeros(2, 3).long()

    def constants(self, labels, names):
        return {"always predicting every tag": torch.ones(3), "always predicting no tag": -torch.ones(3)}

    def read_labels(self, splits, column):
        for name, rows in splits.items():
            if any(tag not in range(3) for tags in rows[column] for tag in tags):
                raise LabelError.of(column, f"other tags in the {name} rows", "lists of 0, 1, 2")
        return TagLabels()


TASK = """
_target_: test_seams_tasks.Tags
name: tags
columns: [text]
metrics:
  f1:
    _target_: torchmetrics.classification.MultilabelF1Score
    num_labels: 3
"""


# -- what is checked


def rows(count, start):
    made = []
    for i in range(start, start + count):
        tags = [tag for tag in range(3) if (i + 1) >> tag & 1]
        made.append({"text": " ".join([*(NOUNS[tag] for tag in tags), *["big"] * (i % 5 + 1)]), "label": tags})
    return made


def words_of(folder):
    words = ["task=tags", f"data.path={folder}", "data.name=null", f"paths.runs={folder}/runs", "data.batch_size=8"]
    return [*words, "trainer.accelerator=cpu", "trainer.precision=32-true", "data.proxy=1"]


@pytest.fixture
def config(tmp_path, teacher):
    """Composes the fine-tuning of a folder of rows, with the user's config folder."""
    (tmp_path / "conf/task").mkdir(parents=True)
    (tmp_path / "conf/task/tags.yaml").write_text(TASK)

    def compose_with(**splits):
        for name, made in splits.items():
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
        words = [f"hydra.searchpath=[file://{tmp_path}/conf]", *words_of(tmp_path), f"paths.output={tmp_path}/run"]
        words += ["+experiment=finetune", f"checkpoint={teacher}", "module.learning_rate=3e-3", "trainer.max_epochs=12"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("train", words)

    return compose_with


def f1_of(folder, held_out):
    """Predicts tags through transformers; returns scikit-learn's F1, the labels, and the model's output with them."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.problem_type == "multi_label_classification" and model.config.num_labels == 3
    inputs = tokenizer([row["text"] for row in held_out], padding=True, return_tensors="pt")
    labels = torch.tensor([[float(tag in row["label"]) for tag in range(3)] for row in held_out])
    with torch.no_grad():
        found = model(**inputs, labels=labels)
    return f1_score(labels, found.logits > 0, average="macro"), labels, found


def test_a_task_of_the_users_own_is_fine_tuned_and_searched(config, tmp_path, capsys):
    held_out = rows(20, 200)
    results = runner.run(config(train=rows(96, 0), validation=held_out))
    expected, labels, found = f1_of(tmp_path / "run/model", held_out)
    assert results["f1"] == pytest.approx(expected, abs=1e-6)
    assert results["f1"] > f1_score(labels, torch.ones(20, 3), average="macro")  # better than chance
    loss = Tags(metrics={"f1": MultilabelF1Score(3)}).loss(found.logits, labels)
    assert loss.item() == pytest.approx(found.loss.item())
    words = ["+experiment=task", "teacher=bert_base", f"teacher.path={tmp_path}/run/model", *words_of(tmp_path)]
    for stage in ("representation", "logits", "labels"):
        words += [f"{place}objective.{stage}.epochs=1" for place in ("", "search.stages.mini.")]
    words += ["search.episodes=1", "search.candidates=1", "search.finalists=1"]
    words += ["space.num_hidden_layers=[1]", "space.num_attention_heads=[2]", "space.hidden_size=[16]"]
    words += ["space.intermediate_size=[32]", "latency.accelerators=[cpu]", "latency.repeats=1", "latency.runs=1"]
    capsys.readouterr()
    frame = kdnas.run_search(*words, "latency.length=8", config_dir=tmp_path / "conf")
    assert frame["full held-out f1"][0] == pytest.approx(f1_of(frame["export"][0], held_out)[0], abs=1e-6)
    assert f"'hydra.searchpath=[file://{tmp_path}/conf]' +experiment=finetune" in capsys.readouterr().out


def test_labels_that_the_task_does_not_have_are_refused(config):
    wrong = [{"text": "dogs", "label": [3]}]
    with pytest.raises(ConfigError, match="^data.path=.*: column label holds other tags in the training rows; must be"):
        runner.run(config(train=wrong, validation=wrong))

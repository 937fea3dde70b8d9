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


@pytest.fixture
def config(tmp_path, teacher):
    """Composes the fine-tuning of a folder of rows, with the user's config folder."""
    (tmp_path / "conf/task").mkdir(parents=True)
    (tmp_path / "conf/task/tags.yaml").write_text(TASK)

    def compose_with(**splits):
        for name, made in splits.items():
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
        words = [f"hydra.searchpath=[file://{tmp_path}/conf]", "+experiment=finetune", "task=tags"]
        words += [f"data.path={tmp_path}", "data.name=null", f"checkpoint={teacher}"]
        words += [f"paths.runs={tmp_path}/runs", f"paths.output={tmp_path}/run", "trainer.accelerator=cpu"]
        words += [
            "trainer.precision=32-true",
            "trainer.max_epochs=12",
            "module.learning_rate=3e-3",
            "data.batch_size=8",
            "data.proxy=1",
        ]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("train", words)

    return compose_with


def test_a_task_of_the_users_own_is_fine_tuned(config, tmp_path):
    held_out = rows(20, 200)
    results = runner.run(config(train=rows(96, 0), validation=held_out))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/model").eval()
    assert model.config.problem_type == "multi_label_classification" and model.config.num_labels == 3
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run/model")
    inputs = tokenizer([row["text"] for row in held_out], padding=True, return_tensors="pt")
    labels = torch.tensor([[float(tag in row["label"]) for tag in range(3)] for row in held_out])
    with torch.no_grad():
        found = model(**inputs, labels=labels)
    assert results["f1"] == pytest.approx(f1_score(labels, found.logits > 0, average="macro"), abs=1e-6)
    assert results["f1"] > f1_score(labels, torch.ones(20, 3), average="macro")  # better than chance
    loss = Tags(metrics={"f1": MultilabelF1Score(3)}).loss(found.logits, labels)
    assert loss.item() == pytest.approx(found.loss.item())


def test_labels_that_the_task_does_not_have_are_refused(config):
    wrong = [{"text": "dogs", "label": [3]}]
    with pytest.raises(ConfigError, match="^data.path=.*: column label holds other tags in the training rows; must be"):
        runner.run(config(train=wrong, validation=wrong))

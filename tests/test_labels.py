"""Labels are names: the same class ids in all splits, names in what is exported, a teacher in the data's order."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from hydra import compose, initialize_config_dir
from labelled import classification, labelled, regression
from sklearn.metrics import f1_score, matthews_corrcoef
from torchmetrics import MeanSquaredError
from torchmetrics.classification import BinaryF1Score
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BertConfig

from kdnas.app import baselines
from kdnas.app.build import build, connect
from kdnas.app.preflight import preflight
from kdnas.app.run import run
from kdnas.base.config import instantiate
from kdnas.base.errors import ConfigError
from kdnas.datamodules import grammar
from kdnas.models.architecture import Architecture
from kdnas.models.checkpoints import unpack
from kdnas.models.classes import name_classes, names_of, teacher_order
from kdnas.models.features import LOGITS
from kdnas.tasks import classification as classification_module
from kdnas.tasks.metrics import Matthews, Pearson, accuracy, f1
from kdnas.training.split_metrics import SplitMetrics

CONF = Path(__file__).resolve().parent.parent / "conf"
CLASSES = ("entailment", "neutral", "contradiction")


@pytest.fixture(scope="session")
def tokenizer(teacher):
    return AutoTokenizer.from_pretrained(teacher)


def write(folder, labels=None, **splits):
    """A dataset of (text, label) rows; `labels` are the names of its label feature, if it has some."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, given in splits.items():
        rows = [{"text": f"{'dogs ' * (i + 1)}are running", "label": label} for i, label in enumerate(given)]
        if labels:
            features = Features(text=Value("string"), label=ClassLabel(names=labels))
            Dataset.from_list(rows, features=features).to_parquet(folder / f"{split}.parquet")
        else:
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def module(path, tokenizer, **settings):
    data = labelled(path, ["text"], tokenizer=tokenizer, **settings)
    data.setup("fit")
    return data


def ids(rows):
    """The class ids, by the number of words that the text of a row has."""
    lengths = [len(row) for row in rows["input_ids"]]
    return [label for _, label in sorted(zip(lengths, rows["labels"], strict=True))]


# -- the data's classes


@pytest.mark.parametrize(
    ("train", "settings", "expected", "names"),
    [
        (["pos", "neg", "pos"], {"num_labels": 2}, [1, 0, 1], ("neg", "pos")),
        (["b", " a", "b "], {"num_labels": 2}, [1, 0, 1], ("a", "b")),
        (["b", "a", None, "", "b"], {"num_labels": 2}, [1, 0, 1], ("a", "b")),
        (["pos", "neg", "pos"], {"num_labels": 2, "labels": ["pos", "neg"]}, [0, 1, 0], ("pos", "neg")),
        (["c", "a"], {"num_labels": 3, "labels": ["a", "b", "c"]}, [2, 0], ("a", "b", "c")),
        ([1, 0, 1], {"num_labels": 2}, [1, 0, 1], None),
        (["1", "0", "1"], {"num_labels": 2}, [1, 0, 1], None),
        ([True, False], {"num_labels": 2}, [1, 0], None),
        ([1.0, 0.0, 2.0], {"num_labels": 3}, [1, 0, 2], None),
        ([1, 0, 1], {"num_labels": 2, "labels": ["no", "yes"]}, [1, 0, 1], ("no", "yes")),
        ([5, 1, 3, 2, 4], {"num_labels": 5}, [4, 0, 2, 1, 3], ("1", "2", "3", "4", "5")),
        (["10", "9", "2"], {"num_labels": 3}, [2, 1, 0], ("2", "9", "10")),
        ([2, 1], {"num_labels": 2, "labels": ["bad", "good"]}, [1, 0], ("bad", "good")),
        ([-1, 1, -1], {"num_labels": 2}, [0, 1, 0], ("-1", "1")),
        ([-1, 1, 0, 2], {"num_labels": 3}, [1, 0, 2], None),
        ([0, 2, 0], {"num_labels": 3}, [0, 2, 0], None),
    ],
    ids=str,
)
def test_labels_become_class_ids_and_keep_their_names(tmp_path, tokenizer, train, settings, expected, names):
    path = write(tmp_path / "d", train=train, validation=train)
    data = module(path, tokenizer, **settings)
    assert (ids(data.train), ids(data.validation), data.class_names) == (expected, expected, names)


@pytest.mark.parametrize(
    ("given", "names"), [(["neg", "pos"], ("neg", "pos")), (["0", "1"], None), (["1", "2"], ("1", "2"))]
)
def test_a_label_feature_names_the_classes(tmp_path, tokenizer, given, names):
    data = module(write(tmp_path / "d", given, train=[0, 1, -1, 1], validation=[1, 0]), tokenizer, num_labels=2)
    assert (ids(data.train), ids(data.validation), data.class_names) == ([0, 1, 1], [1, 0], names)


def test_names_have_one_id_in_all_splits(tmp_path, tokenizer):
    path = write(tmp_path / "d", train=["c", "a", "b"], validation=["c", "b"])
    assert ids(module(path, tokenizer, num_labels=3).validation) == [2, 1]
    path = write(tmp_path / "other", train=["c", "b"], validation=["a", "c", "b"])
    with pytest.raises(
        ConfigError, match="held-out rows hold the label a, which the training rows do not; must be one of b, c"
    ):
        module(path, tokenizer, num_labels=2)


@pytest.mark.parametrize(
    ("labels", "num_labels", "says"),
    [
        (list("abcde"), 2, "holds the classes a, b, c, d, e; must be 2 of them, or task.num_labels=5"),
        (list("ab"), 5, "holds the classes a, b; must be 5 of them, or task.num_labels=2"),
        ([0, 1, 2], 2, "holds int64, as 2; must be whole numbers from 0 to 1, or task.num_labels=3"),
        ([0, 1, 1], 5, "holds int64, up to 1; must be whole numbers from 0 to 4, or task.num_labels=2"),
        (["a", "b"], 1, "holds string, as a; must be finite numbers"),
    ],
)
def test_other_classes_than_the_task_has_are_refused(tmp_path, tokenizer, labels, num_labels, says):
    path = write(tmp_path / "d", train=labels, validation=labels)
    with pytest.raises(ConfigError, match=says):
        module(path, tokenizer, num_labels=num_labels)


def test_a_number_below_zero_is_a_class_only_if_it_is_called_one(tmp_path, tokenizer):
    path = write(tmp_path / "d", train=[-1, 0, 1, 1], validation=[0, 1, -1])
    with pytest.raises(ConfigError, match="as -1, which may stand for a missing label or for a class; must be whole"):
        module(path, tokenizer, num_labels=3)
    assert ids(module(path, tokenizer, num_labels=2).train) == [0, 1, 1]
    named = module(path, tokenizer, num_labels=3, labels=["bad", "so-so", "good"])
    assert (ids(named.train), named.class_names) == ([0, 1, 2, 2], ("bad", "so-so", "good"))


def test_numbers_to_learn_are_no_classes(tmp_path, tokenizer):
    path = write(tmp_path / "named", ["neg", "pos"], train=[0, 1], validation=[1])
    with pytest.raises(ConfigError, match="holds the classes neg, pos; must be numbers, or task.num_labels=2"):
        module(path, tokenizer, num_labels=1)
    numbers = module(write(tmp_path / "d", train=[-3, 2, 0], validation=[1]), tokenizer, num_labels=1)
    assert ids(numbers.train) == [-3, 2, 0] and numbers.class_names is None


@pytest.mark.parametrize(
    ("given", "labels", "expected"),
    [
        (["Not-Equivalent", "EQUIVALENT"], None, [1, 0]),
        ([1, 0], ["equivalent", "not_equivalent"], [1, 0]),
        ([0, 1], None, [0, 1]),
    ],
)
def test_further_sources_go_by_the_names_of_the_task(tmp_path, tokenizer, given, labels, expected):
    task = write(tmp_path / "task", train=["equivalent", "not_equivalent"], validation=["equivalent", "not_equivalent"])
    (tmp_path / "more").mkdir()
    rows = [{"text": f"cats {'cats ' * (i + 5)}", "label": label} for i, label in enumerate(given)]
    if labels:
        features = Features(text=Value("string"), label=ClassLabel(names=labels))
        Dataset.from_list(rows, features=features).to_parquet(tmp_path / "more/train.parquet")
    else:
        (tmp_path / "more/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    extra = [{"path": str(tmp_path / "more"), "columns": ["text"]}]
    assert ids(module(task, tokenizer, num_labels=2, extra=extra).train) == expected  # the task's own are held out too


def test_a_further_source_with_names_wants_a_task_with_names(tmp_path, tokenizer):
    task = write(tmp_path / "task", train=[0, 1, 0, 1], validation=[1, 0])
    extra = [{"path": write(tmp_path / "more", train=["yes", "no"]), "columns": ["text"]}]
    with pytest.raises(ConfigError, match=r"holds the classes no, yes; must be 0, 1 \(task.labels gives"):
        module(task, tokenizer, num_labels=2, extra=extra)
    data = module(task, tokenizer, num_labels=2, extra=extra, labels=["yes", "no"])
    assert data.class_names == ("yes", "no")


# -- names of models


def test_names_that_nobody_gave_are_none():
    config = BertConfig()
    for names, found in (
        (["ham", "spam"], ("ham", "spam")),
        (["LABEL_0", "LABEL_1"], None),
        (["0", "1"], None),
        (["1", "2"], ("1", "2")),
        (None, None),
    ):
        name_classes(config, 2, names)
        assert names_of(config) == found and config.num_labels == 2
    name_classes(config, 3)
    assert config.to_dict()["id2label"] == {i: f"LABEL_{i}" for i in range(3)}


def test_a_teachers_classes_go_by_their_names():
    nli = ["contradiction", "neutral", "entailment"]
    assert teacher_order("t", nli, CLASSES) == (2, 1, 0)
    assert teacher_order("t", ["POSITIVE", "Negative"], ["negative", "positive"]) == (1, 0)
    assert teacher_order("t", ["not-entailment", "entailment"], ["entailment", "not_entailment"]) == (1, 0)
    assert teacher_order("t", ["1", "-1"], ["-1", "1"]) == (1, 0)  # the sign is no punctuation
    assert teacher_order("t", list(CLASSES), CLASSES) is None  # nothing to move
    assert teacher_order("t", None, CLASSES) is teacher_order("t", nli, None) is None
    with pytest.raises(ConfigError, match="teacher.path=t: its classes are NEG, POS; must be the data's, no, yes"):
        teacher_order("t", ["NEG", "POS"], ["no", "yes"])


# -- from the data to the export


@pytest.fixture(scope="module")
def taught(teacher, teach, tmp_path_factory):
    """A classifier that knows the held-out pairs of the built-in task, its classes in the order given, named or not."""

    def make(order=(0, 1, 2), names=CLASSES):
        folder = tmp_path_factory.mktemp("taught")
        torch.manual_seed(4)
        model = AutoModelForSequenceClassification.from_pretrained(teacher, num_labels=3)
        tokenizer = AutoTokenizer.from_pretrained(teacher)
        teach(model, tokenizer)
        for weights in (model.classifier.weight, model.classifier.bias):
            weights.data = weights.data[list(order)]
        name_classes(model.config, 3, [names[i] for i in order] if names else None)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return make


SMALL = ["data=demo", "task=demo", "data.rows=16", "data.held_out=9", "data.proxy=1", "data.batch_size=8", "~latency"]
SMALL += ["trainer.accelerator=cpu", "trainer.precision=32-true", "outputs=memory"]
STAGES = ["objective=xtremedistil", "trainer.max_epochs=null"]
STAGES += [f"objective.{stage}.epochs=1" for stage in ("representation", "logits", "labels")]


def config(folder, *overrides):
    places = [f"paths.runs={folder}", f"paths.output={folder}/run", "search.dir=null"]
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("train", [*SMALL, *places, *overrides])
    if cfg.architectures:
        cfg.architectures = [Architecture(1, 2, 8, 16, "gelu").to_dict()]
    return cfg


def opened(cfg):
    """A module whose teacher can be asked, and its data."""
    plan = preflight(cfg)
    module, data = build(plan)
    connect(module, data, plan.trainer)
    return module, data


def test_a_teacher_in_another_order_teaches_in_the_datas(taught, tmp_path, caplog):
    caplog.set_level(logging.INFO, "kdnas")
    given = {}
    for outputs in ("online", "memory"):
        for order in ((0, 1, 2), (2, 0, 1)):
            words = [f"teacher.path={taught(order)}", f"outputs={outputs}", *STAGES]
            module, data = opened(config(tmp_path, *words))
            judged = baselines.baselines(module, data, torch.device("cpu"))
            asked = [module.teacher(batch, {LOGITS})[LOGITS] for _, batch in data.held_out_batches()]
            given[outputs, order] = torch.cat(asked)
            assert judged.teacher["accuracy"] > 0.7
    first, *others = given.values()
    assert all(torch.allclose(first, other, atol=1e-4) for other in others), [(first - o).abs().max() for o in others]
    assert "the teacher's classes are reordered to match the data's" in caplog.text


def test_exports_carry_the_names_of_the_data(taught, tmp_path):
    cfg = config(tmp_path, f"teacher.path={taught((1, 2, 0))}", *STAGES)
    run(cfg)
    for found in (AutoConfig.from_pretrained(tmp_path / "run/model"), unpack(tmp_path / "run/best.ckpt")[0]):
        assert found.id2label == dict(enumerate(CLASSES)) and found.label2id["contradiction"] == 2
        assert found.problem_type == "single_label_classification"


def test_an_export_has_no_names_of_another_task(taught, tmp_path):
    """Of data without names the classes are numbers; an encoder tells none apart."""
    source, named = taught(names=("ham", "spam", "eggs")), tmp_path / "named"
    pairs = grammar.pairs(24, seed=3)
    (tmp_path / "data").mkdir()
    for name, rows in (("train", pairs[:16]), ("validation", pairs[16:])):
        (tmp_path / f"data/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["data=glue", "data.name=null", f"data.path={tmp_path}/data", "data.max_length=64", "trainer.max_epochs=1"]
    run(config(tmp_path / "tuned", *words, "module=finetune", f"checkpoint={source}", "architectures=null"))
    found = AutoConfig.from_pretrained(tmp_path / "tuned/run/model")
    assert found.id2label == {i: f"LABEL_{i}" for i in range(3)}
    tuned = ["module=finetune", f"checkpoint={source}", "architectures=null", "task.labels=[yes,maybe,no]"]
    run(config(named, *words, *tuned))
    assert AutoConfig.from_pretrained(named / "run/model").id2label == {0: "yes", 1: "maybe", 2: "no"}
    run(config(tmp_path / "encoder", f"teacher.path={source}", "trainer.max_epochs=1"))
    assert names_of(AutoConfig.from_pretrained(tmp_path / "encoder/run/model")) is None


# -- the teacher's own metrics, and chance


def test_a_teacher_with_other_names_or_without_any_in_another_order_is_refused(taught, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="its classes are ham, spam, eggs; must be the data's, entailment, neutral"):
        run(config(tmp_path, f"teacher.path={taught(names=('ham', 'spam', 'eggs'))}", *STAGES))
    # nine rows are few to be sure of an order by
    monkeypatch.setattr(classification_module, "EVIDENT", 1)
    wanted = r'id2label {"0": "contradiction", "1": "entailment", "2": "neutral"} in its config.json$'
    with pytest.raises(ConfigError, match=wanted):
        run(config(tmp_path, f"teacher.path={taught((2, 0, 1), names=None)}", *STAGES))
    assert not (tmp_path / "run/last.ckpt").exists() and not (tmp_path / "run/settings.json").exists()


def sayings(logits, labels, order=None, names=None, task=None, also=()):
    """A distillation whose teacher says what is given, and its held-out data: labels of one split or several."""
    logits, labels = ([part] if torch.is_tensor(part) else part for part in (logits, labels))
    count = logits[0].shape[1]
    kept = torch.cat([part[:, list(order)] if order else part for part in logits])
    starts = np.cumsum([0, *map(len, logits)])
    batches = [
        (split, {"labels": part, "rows": torch.arange(starts[split], starts[split + 1])})
        for split, part in enumerate(labels)
    ]

    class Distiller:
        held_out = (SplitMetrics(task or classification(count), also),)
        teacher_path, class_order = "t", order
        teacher_config = BertConfig(num_labels=count)

        @staticmethod
        def teacher(batch, features):
            return {LOGITS: kept[batch["rows"]]}

    class Batch(dict):
        def to(self, device):
            return self

    held_out = [(split, Batch(batch)) for split, batch in batches]
    data = SimpleNamespace(
        held_out_labels=labels,
        class_names=names,
        held_out_batches=lambda: iter(held_out),
    )
    return Distiller, data


@pytest.fixture
def judged(monkeypatch):
    def judge(*args, **settings):
        kind, data = sayings(*args, **settings)
        monkeypatch.setattr(baselines, "StudentDistiller", kind)
        return baselines.baselines(kind(), data, torch.device("cpu"))

    return judge


def votes(predicted, count=3):
    return 5 * torch.nn.functional.one_hot(torch.tensor(predicted), count).float()


def test_chance_is_the_best_constant_answer(judged):
    labels = [0, 0, 0, 1, 1, 1, 1, 2]
    found = judged([votes(labels), votes([2, 2, 2, 1])], [torch.tensor(labels), torch.tensor([2, 2, 2, 1])], also=["b"])
    assert found.chance == pytest.approx({"accuracy": 4 / 8, "accuracy_b": 3 / 4})
    assert found.teacher == {"accuracy": 1.0, "accuracy_b": 1.0}
    assert found.constant == "always predicting class 1"
    # F1 of the second class is best where it is always said, the correlation nowhere: scikit-learn's values
    labels = [0, 1, 1, 0, 0, 0, 1]
    metrics = {"f1": BinaryF1Score(), "matthews": Matthews()}
    found = judged(votes(labels, 2), torch.tensor(labels), task=classification(2, metrics=metrics), names=("no", "yes"))
    assert found.chance == pytest.approx({"f1": f1_score(labels, [1] * 7), "matthews": 0.0}) and "yes" in found.constant
    assert list(found.chance) == list(found.teacher) == ["f1", "matthews"]


def test_a_constant_number_correlates_with_nothing(judged):
    labels = torch.tensor([0.5, 1.5, 4.0, 2.5])
    found = judged(labels[:, None] / 2, labels, task=regression())
    assert found.chance == {"pearson": 0.0} and found.teacher["pearson"] == pytest.approx(1.0)


def test_a_teacher_at_chance_is_refused(judged):
    labels = [0, 0, 0, 1, 1, 2]
    message = "teacher.path=t: its held-out accuracy is 0.5000, no better than always predicting no .accuracy 0.5000"
    with pytest.raises(ConfigError, match=message):
        judged(votes([0] * 6), torch.tensor(labels), names=("no", "perhaps", "yes"))


@pytest.mark.parametrize(
    ("names", "order", "told"),
    [
        (None, None, r'"0": "class_1", "1": "class_2", "2": "class_0"} in its config.json, and task.labels=.class_0,'),
        (("a", "b", "c"), None, r'"0": "b", "1": "c", "2": "a"} in its config.json$'),
        (("a", "b", "c"), (2, 0, 1), r'"0": "c", "1": "a", "2": "b"} in its config.json$'),
    ],
)
def test_an_evident_order_is_told(judged, names, order, told):
    """The teacher says 0 of what is 1, 1 of what is 2, 2 of what is 0, but for a few; following the advice mends it."""
    labels = torch.arange(60) % 3
    said = (labels + 2) % 3
    said[:6] = labels[:6]
    said = torch.tensor(order)[said] if order else said  # the number that the model itself has for it
    with pytest.raises(ConfigError, match=rf"accuracy 0.1000, in the right order 0.9000; must have id2label {{{told}"):
        judged(votes(said.tolist()), labels, names=names, order=order)


def test_a_weak_teacher_is_not_said_to_be_in_another_order(judged):
    torch.manual_seed(0)
    labels = torch.arange(300) % 3
    said = torch.where(torch.rand(300) < 0.2, labels, torch.randint(0, 3, (300,)))
    assert judged(votes(said.tolist()), labels).teacher["accuracy"] > 1 / 3


def test_a_model_that_learned_nothing_is_told(caplog):
    found = baselines.Baselines({"accuracy": 0.5}, "always predicting neg")
    found.warn([{"loss": 1.0, "accuracy": 0.51}])
    assert not caplog.records
    found.warn([{"accuracy": 0.5}])
    assert "held-out accuracy 0.5000 is no better than always predicting neg (accuracy 0.5000)" in caplog.text
    baselines.Baselines().warn([{"loss": 1.0}])


def test_the_prepare_job_leaves_them(taught, tmp_path):
    words = [f"teacher.path={taught((2, 1, 0))}", "space=demo", *STAGES, "reward=kdnas_v1", "job={kind:prepare}"]
    words += ["latency.repeats=1", "latency.runs=1", "latency.accelerators=[cpu]", "latency.length=16"]
    with initialize_config_dir(str(CONF), version_base=None):
        small = [word for word in SMALL if word != "~latency"]
        words += [f"paths.runs={tmp_path}", f"paths.output={tmp_path}/prepare", f"search.dir={tmp_path}"]
        words += ["search.stages.mini.trainer.max_epochs=null"]
        cfg = compose("search", [*small, *words])
    (tmp_path / "prepare").mkdir()
    run(cfg)
    facts = json.loads((tmp_path / "prepare/prepared.json").read_text())
    assert facts["chance"] == {"accuracy": pytest.approx(1 / 3)} and facts["teacher_metrics"]["accuracy"] > 0.7


# -- metrics


def test_metrics_follow_the_number_of_classes(caplog):
    caplog.set_level(logging.INFO, "kdnas")
    rng = np.random.default_rng(0)
    for count in (2, 5):
        labels = rng.integers(0, count, 60)
        said = np.where(rng.random(60) < 0.5, labels, rng.integers(0, count, 60))
        pair = torch.tensor(said), torch.tensor(labels)
        average = "binary" if count == 2 else "macro"
        assert f1(count)(*pair).item() == pytest.approx(f1_score(labels, said, average=average))
        assert Matthews(count)(*pair).item() == pytest.approx(matthews_corrcoef(labels, said))
        assert accuracy(count)(*pair).item() == pytest.approx(np.mean(labels == said))
    assert caplog.text.count("macro F1") == 1 and "task.num_labels=5" in caplog.text
    constant = torch.zeros(60, dtype=torch.long)
    assert Matthews(5)(constant, torch.tensor(labels)).item() == 0


def test_a_metric_of_which_less_is_better_decides_nothing():
    metrics = {"mse": MeanSquaredError(), "pearson": Pearson()}
    assert list(regression(metrics=metrics, metric="pearson").metrics) == ["pearson", "mse"]
    with pytest.raises(ConfigError, match="^metric=mse: must be a metric of which more is better"):
        regression(metrics=metrics, metric="mse")


@pytest.mark.parametrize("task", ["mrpc", "qqp", "cola", "stsb", "mnli", "sst2"])
def test_one_metric_decides(task):
    """It picks the best epoch, is rewarded, is shown first, and is the one of the GLUE table."""
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("search", ["+experiment=mnli", f"task={task}"])
        other = compose("search", ["+experiment=mnli", f"task={task}", "task.metric=accuracy"])
        tasks = compose("evaluate").evaluation.tasks
    recipe = instantiate(cfg.objective)
    assert next(iter(SplitMetrics(recipe.task).names)) == recipe.stages[-1].monitor == tasks[task]
    assert cfg.reward.quality.name == tasks[task]
    assert next(iter(instantiate(cfg.task).metrics)) == tasks[task]
    if task in ("mrpc", "qqp"):
        recipe = instantiate(other.objective)
        assert list(recipe.metrics) == ["accuracy", "f1"] and recipe.stages[-1].monitor == "accuracy"
        assert other.reward.quality.name == "accuracy"


def test_metrics_that_do_not_go_with_the_task_are_refused():
    for make, says in (
        (lambda: classification(2, metric="f1"), "^metric=f1: must be one of accuracy"),
        (
            lambda: classification(3, metrics={"p": Pearson()}),
            "^metrics.p=Pearson: must be a metric for Classification",
        ),
        (lambda: classification(5, metrics={"mine": accuracy(3)}), "^metrics.mine: does not go with num_labels=5"),
        (
            lambda: regression(metrics={"mine": accuracy(3)}),
            "^metrics.mine=MulticlassAccuracy: must be a metric for",
        ),
        (lambda: classification(2, metrics={}), "^metrics={}: must be at least one"),
        (lambda: regression(num_labels=3), "^num_labels=3: must be 1; a regression predicts one number"),
        (lambda: accuracy(1), "^num_labels=1: must be a whole number from 2"),
    ):
        with pytest.raises(ConfigError, match=says):
            make()

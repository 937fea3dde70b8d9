"""Further sources beside a task's rows: with labels they are training rows, without they are a transfer set."""

from types import SimpleNamespace

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from labelled import labelled
from transformers import AutoTokenizer

from kdnas.base.errors import ConfigError

CLASSES = ["entailment", "neutral", "contradiction"]
COLUMNS = ["premise", "hypothesis"]


@pytest.fixture(scope="session")
def tokenizer(teacher):
    return AutoTokenizer.from_pretrained(teacher)


def pair(number, noun="dogs"):
    """A premise of its own number of words, and a hypothesis."""
    return "all " + "big " * number + f"{noun} are running", f"some {noun} are running"


def write(folder, classes=CLASSES, columns=COLUMNS, **splits):
    """A dataset of (premise, hypothesis, label), with named classes."""
    features = Features({name: Value("string") for name in columns} | {"label": ClassLabel(names=classes)})
    folder.mkdir()
    for name, rows in splits.items():
        values = dict(zip([*columns, "label"], zip(*rows, strict=True), strict=True))
        Dataset.from_dict({k: list(v) for k, v in values.items()}, features).to_parquet(folder / f"{name}.parquet")
    return str(folder)


@pytest.fixture
def task(tmp_path):
    """Eight pairs about dogs (one of them twice) and two held out."""
    rows = [(*pair(i), i % 3) for i in range(8)]
    return write(tmp_path / "task", train=[*rows, (*pair(0), 1)], validation=[(*pair(20), 0), (*pair(21), 1)])


def module(path, tokenizer, *extra, **settings):
    data = labelled(path, COLUMNS, 3, tokenizer=tokenizer, extra=extra, **settings)
    data.setup("fit")
    return data


def rows_of(dataset, tokenizer):
    """{text of the pair: label, or None}, after making sure that no pair is there twice."""
    found = tokenizer.batch_decode(list(dataset["input_ids"]), skip_special_tokens=True)
    assert len(set(found)) == len(found)
    labels = dataset["labels"] if "labels" in dataset.column_names else [None] * len(found)
    return dict(zip(found, labels, strict=True))


def said(*pairs):
    return {" ".join(texts): label for *texts, label in pairs}


def test_a_labelled_source_adds_its_rows_under_the_names_of_the_task(tmp_path, task, tokenizer):
    """Rows without a label, rows that are known, and held-out rows do not come in; classes go by their names."""
    other = [
        (*pair(1, "cats"), 0),
        (*pair(2, "cats"), -1),
        (*pair(3), 2),  # the task's own, with another label
        (*pair(20), 0),  # held out
        (*pair(4, "cats"), 2),
    ]
    source = write(tmp_path / "other", classes=CLASSES[::-1], columns=["text", "claim"], train=other)
    data = module(task, tokenizer, {"path": source, "columns": ["text", "claim"]})
    own = [(*pair(i), i % 3) for i in range(1, 8)]
    expected = said(*own, (*pair(1, "cats"), 2), (*pair(4, "cats"), 0))
    found = rows_of(data.train, tokenizer)
    first = " ".join(pair(0))
    assert found.pop(first) in (0, 1)  # of a pair that is there twice, one is kept
    assert found == expected
    assert rows_of(data.validation, tokenizer) == said((*pair(20), 0), (*pair(21), 1))
    assert data.transfer is None


def test_a_source_without_labels_serves_the_first_epochs_alone(tmp_path, task, tokenizer):
    source = write(tmp_path / "texts", train=[(*pair(i, "birds"), -1) for i in range(1, 5)])
    data = module(task, tokenizer, {"path": source, "columns": COLUMNS, "label": None}, batch_size=2)
    data.transfer_epochs = 2
    data.trainer = SimpleNamespace(current_epoch=0)

    def seen(epoch):
        data.trainer.current_epoch = epoch
        batches = list(data.train_dataloader())
        texts = [text for batch in batches for text in tokenizer.batch_decode(batch["input_ids"], True)]
        return sorted(texts), {"labels" in batch for batch in batches}

    own = [" ".join(pair(i)) for i in range(8)]
    birds = [" ".join(pair(i, "birds")) for i in range(1, 5)]
    for epoch in (0, 1):
        assert seen(epoch) == (sorted(own + birds), {False})
    for epoch in (2, 3):
        assert seen(epoch) == (sorted(own), {True})
    data.trainer.current_epoch, data.first_epoch = 0, 2  # as Lightning has it when it resumes
    assert {"labels" in batch for batch in data.train_dataloader()} == {True}


def test_limits_and_proxy_count_for_each(tmp_path, task, tokenizer):
    labelled = write(tmp_path / "labelled", train=[(*pair(i, "cats"), i % 3) for i in range(1, 9)])
    plain = write(tmp_path / "plain", train=[(*pair(i, "birds"), 0) for i in range(1, 9)])
    sources = [{"path": labelled, "columns": COLUMNS}, {"path": plain, "columns": COLUMNS, "label": None}]
    data = module(task, tokenizer, *sources, rows=6)
    cats = [text for text in rows_of(data.train, tokenizer) if "cats" in text]
    assert len(cats) == 6 and 5 <= len(data.train) - 6 <= 6 and len(data.transfer) == 6
    whole = len(data.train)
    data = module(task, tokenizer, *sources, rows=6, proxy=0.5)
    assert (len(data.train), len(data.transfer)) == (round(whole / 2), 3)
    assert 0 < sum("cats" in text for text in rows_of(data.train, tokenizer)) < 6  # of both sources


def test_large_strings_are_strings(tmp_path, task, tokenizer):
    features = Features({name: Value("large_string") for name in COLUMNS})
    rows = [pair(i, "birds") for i in range(1, 4)]
    (tmp_path / "large").mkdir()
    columns = dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True))
    Dataset.from_dict(columns, features).to_parquet(tmp_path / "large/train.parquet")
    data = module(task, tokenizer, {"path": str(tmp_path / "large"), "columns": COLUMNS, "label": None})
    assert len(data.transfer) == 3


def test_wrong_sources_are_refused(tmp_path, task, tokenizer):
    words = write(tmp_path / "words", classes=["yes", "no"], train=[(*pair(1, "cats"), 0)])
    for source, says in (
        ({"path": words, "columns": COLUMNS}, "holds the classes yes, no; must be entailment, neutral, contradiction"),
        ({"path": words, "columns": ["premise"], "label": None}, r"^extra.0.columns=\['premise'\]: must be 2"),
        ({"path": words, "columns": ["premise", "claim"]}, "has no column claim"),
        ({"path": "/no/such", "columns": COLUMNS}, "^extra.0.path=/no/such: no dataset there that can be read"),
        (
            {"path": words, "columns": COLUMNS, "lable": None},
            "must have columns and path or files, and may have path, name, files, csv, split, label",
        ),
        ({"path": words}, "must have columns and path"),
        ("words", "^extra.0: words: must have columns and path"),
    ):
        with pytest.raises(ConfigError, match=says):
            module(task, tokenizer, source)


def test_real_nli(shared_data, tokenizer):
    """SNLI's labels are MNLI's, and no pair comes twice."""
    extra = {"path": str(shared_data / "data" / "snli"), "columns": COLUMNS}
    mnli = str(shared_data / "data" / "glue")
    data = module(mnli, tokenizer, extra, name="mnli", validation="validation_matched", rows=300, held_out=10)
    assert 590 <= len(data.train) <= 600 and set(data.train["labels"]) == {0, 1, 2}

"""No row vanishes without a word: what is read, left out, cut and of which class, counted by hand."""

import gzip
import json
import logging
from pathlib import Path

import pytest
from labelled import labelled
from transformers import AutoTokenizer, ByT5Tokenizer

from kdnas.base.errors import ConfigError
from kdnas.datamodules import SyntheticNLI, TextDataModule
from kdnas.datamodules.tokenization import MOST, shortened

LIKE_MISSING = ["NA", "N/A", "null", "None", "nan", "NULL", "n/a", "NaN", "<NA>"]


@pytest.fixture(scope="session")
def tokenizer(teacher):
    return AutoTokenizer.from_pretrained(teacher)


@pytest.fixture
def made(tokenizer, caplog):
    """Makes a data module and reads it; gives it with what was said of each set of rows, and the warnings."""
    caplog.set_level(logging.INFO, "kdnas")

    def make(path=None, columns=("text",), kind=labelled, **settings):
        caplog.clear()
        data = kind(path and str(path), list(columns), tokenizer=tokenizer, **settings)
        data.setup("fit")
        told = [record.getMessage().partition(": ")[::2] for record in caplog.records if record.levelname == "INFO"]
        warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        return data, dict(told), warned

    return make


def rows(count, label=lambda i: i % 2):
    return [{"text": f"{'big ' * i}dogs are running", "label": label(i)} for i in range(count)]


def lines(*cells, sep=","):
    return "".join(sep.join(map(str, row)) + "\n" for row in cells)


def folder(path, **files):
    """A folder of files: `train_csv="..."` is train.csv; rows become JSON lines."""
    path.mkdir(parents=True)
    for name, content in files.items():
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        (path / name.replace("_", ".")).write_text(content)
    return path


def texts(dataset, tokenizer):
    return sorted(tokenizer.batch_decode(list(dataset["input_ids"]), skip_special_tokens=True))


# -- counted


def test_everything_that_is_left_out_is_said(tmp_path, made):
    """Twelve rows: one null text, one blank, one of zero-width spaces, one null label, one -1; three are cut."""
    odd = [{"text": text, "label": 0} for text in (None, " \n\t", "\u200b\u200b")]
    odd += [{"text": "no dogs are running", "label": label} for label in (None, -1)]
    path = folder(tmp_path / "d", train_jsonl=rows(7) + odd, validation_jsonl=rows(4, lambda i: int(i == 3)))
    data, told, _ = made(path, max_length=8, num_labels=2)
    assert len(data.train) == 7 and max(map(len, data.train["input_ids"])) == 8
    assert told["training"] == (
        f"12 rows read (train of {path}), 5 left out (3 without text, 2 without label); "
        "7 used, 3 cut at 8 tokens; classes 0: 4, 1: 3"
    )
    assert told["held-out"] == (
        f"4 rows read (validation of {path}), 0 left out; 4 used, 0 cut at 8 tokens; classes 0: 3, 1: 1; "
        "4 are among the training rows"
    )
    assert set(data.train.column_names) == {"input_ids", "token_type_ids", "attention_mask", "labels"}


def test_limits_are_said_by_their_names(tmp_path, made):
    path = folder(tmp_path / "d", train_jsonl=rows(40), validation_jsonl=rows(12))
    data, told, _ = made(path, rows=30, held_out=10, proxy=0.5)
    assert "40 rows read" in told["training"] and "10 left out (10 over data.rows=30)" in told["training"]
    assert "; 15 used (data.proxy=0.5), 0 cut at 128 tokens; classes " in told["training"]
    assert "12 rows read" in told["held-out"] and "2 left out (2 over data.held_out=10); 10 used, " in told["held-out"]
    counted = {
        name: int(count)
        for name, count in (one.split(": ") for one in told["training"].split("classes ")[1].split(", "))
    }
    labels = list(data.train["labels"])
    assert counted == {"0": labels.count(0), "1": labels.count(1)}


def test_pieces_of_texts_are_counted(tmp_path, made):
    """Two texts: a heading, three sentences, a fragment; and a blank one, and a null."""
    content = ["Dogs\nall dogs are running. some cats are sleeping! See also", "no dogs are running here.", " ", None]
    held_out = [{"text": "all dogs are running. two dogs are running."}]
    path = folder(tmp_path / "d", train_jsonl=[{"text": text} for text in content], validation_jsonl=held_out)
    _, told, _ = made(path, kind=TextDataModule, validation="validation", sentences=True)
    assert told["training"] == (
        f"4 rows read (train of {path}), 1 left out (1 without text); 6 pieces, 3 left out (3 of fewer than 4 words); "
        "3 used, 0 cut at 128 tokens"
    )
    assert told["held-out"].startswith(f"1 rows read (validation of {path}), 0 left out; 2 pieces, 0 left out; 2 used")
    assert told["held-out"].endswith("; 1 are among the training rows")


def test_rows_of_further_sources_are_counted_too(tmp_path, made):
    """Of six more rows one has no label, two texts are held out, one is the task's own, one comes twice."""
    task = folder(tmp_path / "task", train_jsonl=rows(6), validation_jsonl=rows(12)[8:])
    more = [*rows(9)[5:], {"text": "cats are sleeping", "label": 1}, {"text": "cats", "label": -1}]
    more[3]["text"] = more[2]["text"]
    other = folder(tmp_path / "other", train_jsonl=more)
    plain = folder(tmp_path / "plain", train_csv=lines(["claim"], ["NA"], [""], ["all cats are sleeping"]))
    extra = [{"path": str(other), "columns": ["text"]}, {"path": str(plain), "columns": ["claim"], "label": None}]
    data, told, _ = made(task, extra=extra)
    assert told["training"].startswith(
        f"6 rows read (train of {task}), 0 left out; 6 rows read (train of {other}), "
        "3 left out (1 without label, 2 known already or held out); 9 used, 0 cut"
    )
    assert (
        told["transfer"] == f"3 rows read (train of {plain}), 1 left out (1 without text); 2 used, 0 cut at 128 tokens"
    )
    assert (len(data.train), len(data.transfer)) == (9, 2)


def test_the_built_in_task_is_counted(tokenizer, caplog):
    caplog.set_level(logging.INFO, "kdnas")
    data = SyntheticNLI(rows=90, held_out=30, tokenizer=tokenizer)
    data.setup()
    assert f"training: 90 rows read (made for training), {90 - len(data.train)} left out" in caplog.messages[0]
    assert "held-out: 30 rows read (made for scoring), 0 left out; 30 used" in caplog.messages[1]
    data.setup()
    assert len(caplog.messages) == 2  # said once


def test_classes_go_by_their_names(tmp_path, made):
    card = "---\ndataset_info:\n  features:\n  - name: text\n    dtype: string\n  - name: label\n    dtype:\n"
    card += "      class_label:\n        names:\n          '0': bad\n          '1': good\n---\n"
    table = lines(["text", "label"], *([row["text"], row["label"]] for row in rows(5)))
    path = folder(tmp_path / "d", README_md=card, train_csv=table, validation_csv=table)
    _, told, _ = made(path, num_labels=2)
    assert told["training"].endswith("classes bad: 3, good: 2")


# -- one class, or the same rows


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_split_of_one_class_is_refused(tmp_path, made, split):
    splits = {"train_jsonl": rows(6), "validation_jsonl": rows(6)} | {f"{split}_jsonl": rows(6, lambda i: 1)}
    path = folder(tmp_path / "d", **splits)
    named = {"train": "training", "validation": "held-out"}[split]
    with pytest.raises(ConfigError, match=f"^path={path}: all 6 {named} rows are of class 1; must be of two or"):
        made(path, num_labels=2)


def test_a_regression_may_have_one_value_and_whole_numbers_below_zero(tmp_path, made):
    path = folder(tmp_path / "d", train_jsonl=rows(6, lambda i: i - 3), validation_jsonl=rows(3, lambda i: 2))
    data, told, _ = made(path, num_labels=1)
    assert sorted(data.train["labels"]) == [-3, -2, -1, 0, 1, 2] and "class" not in told["training"]


def test_a_class_that_is_not_there_is_said(tmp_path, made):
    path = folder(
        tmp_path / "d", train_jsonl=rows(6, lambda i: (0, 1, 3)[i % 3]), validation_jsonl=rows(6, lambda i: i % 4)
    )
    _, told, warned = made(path, num_labels=4)
    assert "classes 0: 2, 1: 2, 2: 0, 3: 2" in told["training"]
    assert [line for line in warned if "training: no row is of class 2" in line]


@pytest.mark.parametrize("kind", [TextDataModule, labelled])
def test_scoring_on_what_is_trained_on_is_said(tmp_path, made, kind):
    path = folder(tmp_path / "d", train_jsonl=rows(20), validation_jsonl=rows(28)[20:])
    for settings in ({"proxy": 0.5}, {}):
        _, _, warned = made(path, kind=kind, validation="train", **settings)
        assert ["held-out: these rows are trained on as well" in line for line in warned] == [True]
    assert made(path, kind=kind, validation="validation")[2] == []


@pytest.mark.parametrize("settings", [{}, {"validation": "validation", "held_out": 10}], ids=["5 %", "held_out"])
@pytest.mark.parametrize("kind", [TextDataModule, labelled])
def test_held_out_rows_are_the_same_whatever_the_seed(tmp_path, made, tokenizer, kind, settings):
    if kind is labelled:
        settings = settings | {"held_out": 10}
    path = folder(tmp_path / "d", train_jsonl=rows(40), validation_jsonl=rows(40))
    drawn = [made(path, kind=kind, rows=20, seed=seed, **settings)[0] for seed in (1, 2)]
    held_out, train = ([texts(getattr(data, name), tokenizer) for data in drawn] for name in ("validation", "train"))
    assert held_out[0] == held_out[1] and train[0] != train[1]


# -- CSV and TSV


def test_texts_that_look_missing_are_texts(tmp_path, made, tokenizer):
    cells = [[text, i % 2] for i, text in enumerate([*LIKE_MISSING, "007", "1.50", ""])]
    table = lines(["text", "label"], *cells)
    path = folder(tmp_path / "d", train_csv=table + "\n", validation_csv=table)
    data, told, _ = made(path, num_labels=2)
    assert told["training"].startswith(f"13 rows read (train of {path}), 2 left out (2 without text); 11 used")
    expected = sorted(tokenizer(text)["input_ids"] for text in [*LIKE_MISSING, "007", "1.50"])
    assert sorted(data.train["input_ids"]) == expected
    _, told, _ = made(path, num_labels=2, csv={"na_values": ["NA", "null"]})
    assert "4 left out (4 without text)" in told["training"]
    _, told, _ = made(path, num_labels=2, csv={"keep_default_na": True})
    assert f"{len(LIKE_MISSING) + 2} left out" in told["training"]


def test_a_stray_quote_in_a_tsv_swallows_nothing(tmp_path, made):
    cells = [[row["text"], row["label"]] for row in rows(20)]
    for i in (3, 15):
        cells[i][0] = '"' + cells[i][0]
    table = lines(["text", "label"], *cells, sep="\t")
    path = folder(tmp_path / "d", train_tsv=table, validation_tsv=table)
    data, told, warned = made(path, num_labels=2)
    assert told["training"].startswith(f"20 rows read (train of {path}), 0 left out; 20 used") and len(data.train) == 20
    assert "training: 2 texts begin with a quote, which is kept (data.csv.quoting=0 takes quotes off)" in warned
    _, told, warned = made(path, num_labels=2, csv={"quoting": 0})
    assert told["training"].startswith("8 rows read") and "training: 1 texts hold line ends" in warned[0]


def test_a_stray_quote_in_a_csv_is_pointed_out(tmp_path, made):
    cells = [[row["text"], row["label"]] for row in rows(20)]
    cells[3][0], cells[15][0] = '"' + cells[3][0], cells[15][0] + '"'
    path = folder(tmp_path / "d", train_csv=lines(["text", "label"], *cells), validation_jsonl=[])
    held_out = folder(tmp_path / "held", validation_csv=lines(["text", "label"], *cells[5:9]))
    files = {"train": str(path / "train.csv"), "validation": str(held_out / "validation.csv")}
    _, told, warned = made(files=files, num_labels=2)
    assert told["training"].startswith("8 rows read") and "data.csv.quoting=3" in warned[0]
    assert made(files=files, num_labels=2, csv={"quoting": 3})[1]["training"].startswith("20 rows read")


def test_empty_cells_among_labels_are_rows_without_one(tmp_path, made):
    cells = [[row["text"], row["label"]] for row in rows(12)]
    whole = lines(["text", "label"], *cells)
    cells[3][1] = cells[8][1] = ""
    path = folder(tmp_path / "d", train_csv=lines(["text", "label"], *cells), validation_csv=whole)
    data, told, _ = made(path, num_labels=2, csv={"chunksize": 5})
    assert "12 rows read" in told["training"] and "2 left out (2 without label); 10 used" in told["training"]
    assert "classes 0: 5, 1: 5" in told["training"] and sorted(data.train["labels"]) == [0] * 5 + [1] * 5


def test_whole_numbers_stored_as_others_are_class_ids(tmp_path, made):
    stored = [
        row | {"label": None if i == 2 else float("nan") if i == 3 else float(i % 2)} for i, row in enumerate(rows(8))
    ]
    path = folder(tmp_path / "d", train_jsonl=stored, validation_jsonl=rows(4))
    data, told, _ = made(path, num_labels=2)
    assert "2 left out (2 without label)" in told["training"] and data.train["labels"][0] in (0, 1)
    assert next(iter(data.train_dataloader()))["labels"].dtype.is_floating_point is False


def test_how_a_csv_is_written_can_be_said(tmp_path, made, tokenizer):
    path = tmp_path / "d"
    path.mkdir(parents=True)
    (path / "train.csv").write_bytes("0;les d\xe9fis: dogs\n1;'all; cats'\n0;cats\n".encode("latin-1"))
    (path / "validation.csv").write_bytes(b"0;dogs\n1;cats\n")
    csv = {"sep": ";", "encoding": "latin-1", "names": ["label", "text"], "quotechar": "'", "skiprows": None}
    data, _, _ = made(path, num_labels=2, csv=csv)
    assert sorted(data.train["input_ids"]) == sorted(
        tokenizer(["les d\xe9fis: dogs", "all; cats", "cats"])["input_ids"]
    )
    for wrong, says in (
        ({}, r"(UTF-8.*data.csv.encoding)"),
        ({"encoding": "latin-1"}, r"no column text; it has .* \(.data.csv.sep=';'. sets the separator"),
        ({"sepp": ";"}, r"^csv: .*sepp.*options of pandas"),
        ({"quoting": 9}, r"^csv: .*quoting"),
    ):
        with pytest.raises(ConfigError, match=says):
            made(path, num_labels=2, csv=wrong)
    for wrong in (3, ["sep"]):
        with pytest.raises(ConfigError, match=r"^csv=.*: must be options of pandas.read_csv by name"):
            made(path, csv=wrong)
    plain = folder(tmp_path / "plain", train_jsonl=rows(4), validation_jsonl=rows(4))
    with pytest.raises(ConfigError, match=r"^csv.sep: .* is no CSV; must be null"):
        made(plain, csv={"sep": ";", "quoting": None})


# -- files


def test_a_split_that_nobody_asks_for_is_not_opened(tmp_path, made):
    table = lines(["text", "label"], *([row["text"], row["label"]] for row in rows(6)))
    for ending, content in (("csv", table), ("jsonl", rows(6))):
        splits = {f"{name}_{ending}": content for name in ("train", "validation")}
        path = folder(tmp_path / ending, **splits)
        (path / f"test.{ending}").write_bytes(b"\x00\xff{ id\tsentence")
        assert len(made(path, num_labels=2)[0].train) == 6
        with pytest.raises(ConfigError):
            made(path, num_labels=2, validation="test")


def test_files_can_be_named(tmp_path, made, monkeypatch):
    path = folder(tmp_path / "d", dev_jsonl=rows(4), part1_csv=lines(["text", "label"], ["dogs", 0], ["cats", 1]))
    (path / "part2.csv").write_text(lines(["label", "id", "text"], [1, 8, "big cats"]))
    with gzip.open(path / "part3.csv.gz", "wt") as file:
        file.write(lines(["text", "label"], ["big dogs", 0]))
    named = {"train": "part*.csv*", "validation": ["dev.jsonl"]}
    data, told, _ = made(path, files=named, num_labels=2)
    assert sorted(data.train["labels"]) == [0, 0, 1, 1] and len(data.validation) == 4
    found = ", ".join(str(path / name) for name in ("part1.csv", "part2.csv", "part3.csv.gz"))
    assert told["training"].startswith(f"4 rows read (train of {found}), 0 left out")
    monkeypatch.chdir(path)
    assert len(made("no-such/hub-id", name="x", files=named, num_labels=2)[0].train) == 4
    absolute = {"train": [str(path / "part1.csv"), str(path / "part2.csv")], "validation": str(path / "dev.jsonl")}
    assert len(made(files=absolute, num_labels=2)[0].train) == 3


@pytest.mark.parametrize("kind", ["txt", "csv", "tsv", "jsonl", "parquet"])
def test_a_file_is_a_training_split(tmp_path, made, kind):
    import pandas as pd

    frame = pd.DataFrame({"text": [row["text"] for row in rows(30)]})
    path = tmp_path / f"my file.{kind}"
    if kind in ("jsonl", "parquet"):
        frame.to_json(path, orient="records", lines=True) if kind == "jsonl" else frame.to_parquet(path)
    else:
        path.write_text(("" if kind == "txt" else "text\n") + "\n".join(frame["text"]) + "\n")
    data, _, _ = made(path, kind=TextDataModule)
    assert (len(data.train), len(data.validation)) == (28, 2)
    with pytest.raises(ConfigError, match=r"has no split validation; it has train \(data.files=\{train: a.csv, valid"):
        made(path, kind=TextDataModule, validation="validation")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ("train.csv", r"^files=train.csv: must be files by split, as \{train: a.csv"),
        ({}, r"^files=\{\}: must be files by split"),
        ({"train": 3}, r"^files.train=3: must be a file, a pattern, or a list"),
        ({"train": "gone.csv"}, r"^files.train=.*/gone.csv: must be a file that is there"),
        ({"train": "notes.docx"}, r"^files.train=.*/notes.docx: must be a file that ends in .csv, .tsv, "),
        ({"train": ["a.csv", "b.jsonl"]}, r"^files.train=.*: must be files of one kind"),
        ({"train": "a.csv"}, r"^files=\{train: .*a.csv\}: has no split validation; it has train"),
        ({"train": "a.csv", "validation": "b.jsonl"}, r"validation has no column text; it has x"),
        ({"train": "torn.parquet", "validation": "a.csv"}, r"^files.train=.*torn.parquet: no dataset there"),
    ],
)
def test_files_that_cannot_be_read_are_refused(tmp_path, made, files, says):
    path = folder(tmp_path / "d", a_csv=lines(["text", "label"], ["dogs", 0], ["cats", 1]), b_jsonl=[{"x": 1}])
    for name in ("notes.docx", "torn.parquet"):
        (path / name).write_text("PAR1")
    with pytest.raises(ConfigError, match=says):
        made(path, files=files, num_labels=2)
    with pytest.raises(ConfigError, match=r"^path=null: must be a folder"):
        made(None)


# -- long texts


@pytest.mark.parametrize("fixture", ["teacher", "roberta_teacher"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_giant_text_is_cut_before_it_is_tokenized(fixture, side, request, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(request.getfixturevalue(fixture), truncation_side=side)
    giant = "all big dogs are running " * 200  # 5,000 characters
    spread = ("all" + " " * 300 + "dogs are running\n") * 30
    short = "some cats are sleeping"
    expected = {  # without a cut
        pair: tokenizer(*pair, truncation=True, max_length=16)["input_ids"]
        for pair in ((giant,), (giant, short), (short, giant), (spread,), (short,))
    }
    seen, call = [], type(tokenizer).__call__
    monkeypatch.setattr(
        type(tokenizer), "__call__", lambda self, *a, **k: (seen.append(len(a[0])), call(self, *a, **k))[1]
    )
    for pair, ids in expected.items():
        cut = [shortened(text, tokenizer, 16) for text in pair]
        assert call(tokenizer, *cut, truncation=True, max_length=16)["input_ids"] == ids
        assert max(map(len, cut)) <= 4096
    assert max(seen) <= 4096
    assert shortened(short, tokenizer, 16) is short
    assert len(shortened(" " * 10**7, tokenizer, 16)) == MOST


def test_giant_rows_are_read_and_counted_as_cut(tmp_path, made, tokenizer):
    giant = "all big dogs are running " * 120_000  # three million characters without the end of a sentence
    long = [{"text": giant, "label": 1}, {"text": "x" * 3_000_000, "label": 0}]
    path = folder(tmp_path / "d", train_jsonl=rows(4) + long, validation_jsonl=rows(4))
    data, told, _ = made(path, max_length=16, num_labels=2)
    assert "6 used, 2 cut at 16 tokens" in told["training"]
    first = tokenizer(giant[:1000], truncation=True, max_length=16)["input_ids"]
    assert first in list(data.train["input_ids"])
    data, told, _ = made(path, kind=TextDataModule, validation="validation", sentences=True, max_length=16)
    assert "6 pieces, 2 left out (2 of fewer than 4 words); 4 used, 1 cut at 16 tokens" in told["training"]


def test_cut_rows_of_a_slow_tokenizer_are_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO, "kdnas")
    path = folder(tmp_path / "d", train_jsonl=[{"text": "x" * n} for n in (5, 9, 10, 11, 12)])
    tokenizer = ByT5Tokenizer()  # a token a byte, and one at the end
    data = TextDataModule(str(path), ["text"], tokenizer=tokenizer, max_length=11, validation="train")
    data.setup()
    assert "5 used, 2 cut at 11 tokens" in caplog.messages[0]


def test_a_search_and_a_finetuning_take_the_settings(tmp_path):
    """The options are keys of the configs, so that no plus sign is needed."""
    from hydra import compose, initialize_config_dir

    conf = str(Path(__file__).parent.parent / "conf")
    words = ["data.files={train: a.csv, validation: [b.tsv, c*.tsv]}", "data.csv.sep=';'", "data.csv.na_values=[NA]"]
    with initialize_config_dir(conf, version_base="1.3"):
        for more in (["+experiment=finetune", "checkpoint=x"], ["+experiment=mnli"], []):
            cfg = compose("train", [*more, *words])
            assert cfg.data.files.validation == ["b.tsv", "c*.tsv"] and cfg.data.csv.sep == ";"


def test_another_folder_of_the_same_name_holds_its_own_rows(tmp_path, made):
    """`datasets` takes the rows of the one for those of the other: its cache knows such folders by their last name."""
    card = "---\nconfigs:\n- config_name: mnli\n  data_files:\n"
    card += "".join(f"  - split: {split}\n    path: {split}.jsonl\n" for split in ("train", "validation")) + "---\n"
    sizes = {}
    for parent, count in (("one", 6), ("other", 10)):
        path = folder(tmp_path / parent / "mnli", README_md=card, train_jsonl=rows(count), validation_jsonl=rows(4))
        sizes[parent] = len(made(path, name="mnli", num_labels=2)[0].train)
    assert sizes == {"one": 6, "other": 10}

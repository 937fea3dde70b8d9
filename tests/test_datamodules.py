"""Data modules: which rows they give, in which batches, and what they refuse."""

import json
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from labelled import labelled
from transformers import AutoTokenizer

from kdnas.base.errors import ConfigError
from kdnas.datamodules import SyntheticNLI, TextDataModule
from kdnas.datamodules.bucketing import BucketSampler
from kdnas.datamodules.text import is_sentence, pieces

COLUMNS = ["premise", "hypothesis"]


@pytest.fixture(scope="session")
def tokenizer(teacher):
    return AutoTokenizer.from_pretrained(teacher)


def rows_of(folder, split="train"):
    return [json.loads(line) for line in (Path(folder) / f"{split}.jsonl").read_text().splitlines()]


def write(folder, **splits):
    folder.mkdir(exist_ok=True)
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def texts(dataset, tokenizer):
    return tokenizer.batch_decode(list(dataset["input_ids"]), skip_special_tokens=True)


def pairs(dataset, tokenizer):
    """(premise, hypothesis) as the token types tell them apart."""
    found = []
    for ids, types in zip(dataset["input_ids"], dataset["token_type_ids"], strict=True):
        sides = [[i for i, side in zip(ids, types, strict=True) if side == wanted] for wanted in (0, 1)]
        found.append(tuple(tokenizer.decode(side, skip_special_tokens=True) for side in sides))
    return found


def module(path, columns, tokenizer, kind=TextDataModule, **settings):
    data = kind(path, columns, tokenizer=tokenizer, **settings)
    data.setup("fit")
    return data


# -- batches


def lengths(rows=1000):
    rng = np.random.default_rng(0)
    return rng.integers(4, 65, rows).tolist()


def padding(batches, lengths):
    """The share of positions that hold padding when each batch is as long as its longest row."""
    positions = sum(max(lengths[row] for row in batch) * len(batch) for batch in batches)
    return 1 - sum(lengths[row] for batch in batches for row in batch) / positions


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 1000])
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_holds_every_row_once(rows, shuffle):
    sampler = BucketSampler(lengths(rows), batch_size=8, shuffle=shuffle)
    batches = list(sampler)
    assert sorted(row for batch in batches for row in batch) == list(range(rows))
    assert len(batches) == len(sampler) and sorted(map(len, batches))[1:] == [8] * (len(batches) - 1)


def test_the_order_follows_from_seed_and_epoch():
    def order(seed, epoch):
        return list(BucketSampler(lengths(), batch_size=8, seed=seed, epoch=lambda: epoch))

    assert order(1, 0) == order(1, 0)
    orders = [order(seed, epoch) for seed in (1, 2) for epoch in (0, 1, 2)]
    assert all(one != other for i, one in enumerate(orders) for other in orders[:i])


def test_an_epoch_is_no_sweep_from_short_to_long():
    batches, known = list(BucketSampler(lengths(), batch_size=8)), lengths()
    means = [np.mean([known[row] for row in batch]) for batch in batches]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


def test_little_of_a_batch_is_padding():
    known = lengths()
    order = random.Random(0).sample(range(len(known)), len(known))
    unsorted = padding([order[i : i + 32] for i in range(0, len(order), 32)], known)
    bucketed = padding(list(BucketSampler(known, batch_size=32)), known)
    assert unsorted > 0.4 and bucketed < 0.05


def test_batches_hold_rows_of_like_length_padded_to_the_longest(text_dataset, tokenizer):
    data = module(text_dataset, COLUMNS, tokenizer, validation="validation", batch_size=8)
    data.trainer = SimpleNamespace(current_epoch=0)
    loader = data.train_dataloader()
    seen = []
    for epoch in (0, 1):
        data.trainer.current_epoch = epoch
        batches = list(loader)
        counts = [batch["attention_mask"].sum(1) for batch in batches]
        assert sum(map(len, counts)) == 60
        for batch, count in zip(batches, counts, strict=True):
            assert count.max() <= batch["input_ids"].shape[1] < count.max() + 8  # to a multiple of eight
            assert torch.equal(batch["input_ids"] == tokenizer.pad_token_id, batch["attention_mask"] == 0)
        seen.append([batch["input_ids"].tolist() for batch in batches])
    assert seen[0] != seen[1]
    held_out = [[batch["input_ids"].tolist() for batch in data.val_dataloader()] for _ in range(2)]
    assert held_out[0] == held_out[1] and sum(map(len, held_out[0])) == 20


# -- text


def test_texts_are_cut_into_sentences():
    text = """Anarchism

Anarchism is a political philosophy. Is it sceptical of authority? It is!
Too short. See also
It calls for 2.5 abolitions of  the  state."""
    assert [piece for piece in pieces(text) if is_sentence(piece)] == [
        "Anarchism is a political philosophy.",
        "Is it sceptical of authority?",
        "It calls for 2.5 abolitions of  the  state.",
    ]
    assert not any(map(is_sentence, pieces("") + pieces(" \n\n ")))


def test_two_columns_make_pairs(text_dataset, tokenizer):
    data = module(text_dataset, COLUMNS, tokenizer, validation="validation")
    for dataset, split in ((data.train, "train"), (data.validation, "validation")):
        expected = sorted((row["premise"], row["hypothesis"]) for row in rows_of(text_dataset, split))
        assert sorted(pairs(dataset, tokenizer)) == expected
    assert set(data.train.column_names) == {"input_ids", "token_type_ids", "attention_mask"}


def test_one_column_makes_single_texts(text_dataset, tokenizer):
    data = module(text_dataset, ["premise"], tokenizer, validation="validation")
    assert sorted(texts(data.train, tokenizer)) == sorted(row["premise"] for row in rows_of(text_dataset))


def test_a_text_column_can_be_cut_into_sentences(tmp_path, tokenizer):
    sentences = [f"{number} dogs are running." for number in ("all", "some", "no", "two")]
    rows = [{"text": f"Title\n{' '.join(sentences[:2])}"}, {"text": "\n".join([*sentences[2:], "dogs"])}]
    data = module(write(tmp_path / "d", train=rows, test=rows), ["text"], tokenizer, validation="test", sentences=True)
    expected = sorted(tokenizer(sentence)["input_ids"] for sentence in sentences)
    assert sorted(data.train["input_ids"]) == sorted(data.validation["input_ids"]) == expected


def test_further_sources_are_mixed_in(text_dataset, tmp_path, tokenizer):
    extra = [{"text": f"dogs are running. {'cats ' * (i + 3)}are sleeping."} for i in range(30)]
    path = write(tmp_path / "extra", train=extra)
    source = {"path": path, "columns": ["text"], "sentences": False}
    data = module(
        text_dataset, COLUMNS, tokenizer, validation="validation", extra=[source], rows=20, held_out=5, max_length=64
    )
    # the limits count for each source; of the one without a validation split, 5 % of 30 rows are held out
    assert (len(data.train), len(data.validation)) == (40, 7)
    single = np.array([max(types) == 0 for types in data.train["token_type_ids"]])
    assert single.sum() == 20 and 0 < single[:20].sum() < 20  # mixed, not one after the other


def test_rows_and_held_out_are_limits(text_dataset, tokenizer):
    data = module(text_dataset, COLUMNS, tokenizer, validation="validation", rows=33, held_out=7)
    assert (len(data.train), len(data.validation)) == (33, 7)
    data = module(text_dataset, COLUMNS, tokenizer, validation="validation", rows=1000, held_out=1000)
    assert (len(data.train), len(data.validation)) == (60, 20)


@pytest.mark.parametrize(("proxy", "count"), [(0.3, 18), (0.05, 3), (0.001, 1), (1, 60), (1.0, 60)])
def test_the_proxy_is_a_fraction_of_the_training_rows_alone(text_dataset, tokenizer, proxy, count):
    data = module(text_dataset, COLUMNS, tokenizer, validation="validation", proxy=proxy)
    assert (len(data.train), len(data.validation)) == (count, 20)


@pytest.mark.parametrize("kind", [TextDataModule, labelled])
@pytest.mark.parametrize("limit", [{"proxy": 0.5}, {"rows": 30}], ids=str)
def test_a_part_of_the_rows_is_a_random_part(text_dataset, tokenizer, kind, limit):
    known = [(row["premise"], row["hypothesis"]) for row in rows_of(text_dataset)]
    if kind is labelled:
        limit = limit | {"num_labels": 3}
    part = pairs(module(text_dataset, COLUMNS, tokenizer, kind, validation="validation", **limit).train, tokenizer)
    places = {known.index(pair) for pair in part}
    assert len(places) == 30 and 5 < sum(place < 30 for place in places) < 25


def test_held_out_rows_are_none_of_the_training_rows(text_dataset, tokenizer):
    data = module(text_dataset, COLUMNS, tokenizer)
    train, held_out = pairs(data.train, tokenizer), pairs(data.validation, tokenizer)
    assert (len(train), len(held_out)) == (57, 3)
    expected = [(row["premise"], row["hypothesis"]) for row in rows_of(text_dataset)]
    assert sorted(train + held_out) == sorted(expected)


def test_another_seed_gives_other_training_rows_and_the_same_held_out_ones(text_dataset, tokenizer):
    def made(seed):
        data = module(text_dataset, COLUMNS, tokenizer, proxy=0.5, seed=seed)
        return data.train["input_ids"][:], data.validation["input_ids"][:]

    assert made(1) == made(1)
    assert made(1)[0] != made(2)[0] and made(1)[1] == made(2)[1]


def test_rows_are_cut_to_the_length(text_dataset, tokenizer):
    data = module(text_dataset, COLUMNS, tokenizer, validation="validation", max_length=9)
    assert max(map(len, data.train["input_ids"])) == 9


# -- labels


def test_labels_stay_with_their_rows(text_dataset, tokenizer):
    data = module(text_dataset, COLUMNS, tokenizer, labelled, num_labels=3)
    expected = {(row["premise"], row["hypothesis"]): row["label"] for row in rows_of(text_dataset)}
    assert dict(zip(pairs(data.train, tokenizer), data.train["labels"], strict=True)) == expected
    batch = next(iter(data.train_dataloader()))
    assert batch["labels"].dtype == torch.long and len(batch["labels"]) == len(batch["input_ids"])


def test_rows_without_a_label_are_dropped(tmp_path, tokenizer):
    rows = [{"sentence": "dogs " * (i + 1), "label": i % 3 - 1} for i in range(30)]
    path = write(tmp_path / "d", train=rows, validation=rows[:9])
    data = module(path, ["sentence"], tokenizer, labelled)
    assert sorted(data.train["labels"]) == [0] * 10 + [1] * 10
    assert sorted(data.validation["labels"]) == [0] * 3 + [1] * 3


def test_rows_without_a_text_are_dropped(tmp_path, tokenizer):
    rows = [{"text": f"all {word} are running", "label": i % 2} for i, word in enumerate(["dogs", "cats", "ducks"])]
    holes = [{"text": None, "label": 0}, {"text": "some dogs are running", "label": None}]
    path = write(tmp_path / "holes", train=[*rows, *holes], validation=rows)
    data = module(path, ["text"], tokenizer, labelled, num_labels=2)
    assert sorted(texts(data.train, tokenizer)) == sorted(row["text"] for row in rows)
    for sentences in (False, True):
        data = module(path, ["text"], tokenizer, TextDataModule, validation="validation", sentences=sentences)
        assert len(data.train) == 4


@pytest.mark.parametrize(("labels", "says"), [([0, 1, 2], "int64, as 2"), ([0.0, 0.5], "double|float")])
def test_labels_that_are_no_classes_are_refused(tmp_path, tokenizer, labels, says):
    rows = [{"text": f"all dogs are running {i}", "label": label} for i, label in enumerate(labels)]
    path = write(tmp_path / "odd", train=rows, validation=rows)
    with pytest.raises(ConfigError, match=rf"column label holds .*({says}).*whole numbers from 0"):
        module(path, ["text"], tokenizer, labelled, num_labels=2)
    data = module(path, ["text"], tokenizer, labelled, num_labels=1)
    assert sorted(data.train["labels"]) == labels


def test_numbers_below_zero_are_labels_of_a_regression(tmp_path, tokenizer):
    rows = [{"sentence": "dogs", "label": value} for value in (-1.0, -0.5, 2.5)]
    data = module(write(tmp_path / "d", train=rows, validation=rows), ["sentence"], tokenizer, labelled, num_labels=1)
    assert sorted(data.train["labels"]) == [-1.0, -0.5, 2.5]
    assert next(iter(data.val_dataloader()))["labels"].is_floating_point()


def test_further_splits_are_held_out_too(tmp_path, tokenizer):
    rows = [{"sentence": f"{'dogs ' * (i + 1)}are running", "label": i % 2} for i in range(12)]
    splits = {"train": rows, "matched": rows[:6], "mismatched": [*rows[6:], {"sentence": "no", "label": -1}]}
    path = write(tmp_path / "d", **splits)
    files = "".join(f"\n  - split: {split}\n    path: {split}.jsonl" for split in splits)
    (tmp_path / "d/README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:{files}\n---\n")
    settings = {"validation": "matched", "also": {"other": "mismatched"}}
    data = module(path, ["sentence"], tokenizer, labelled, **settings)
    first, other = data.val_dataloader()
    expected = [[row["sentence"] for row in part] for part in (rows[:6], rows[6:])]
    for loader, sentences in zip((first, other), expected, strict=True):
        seen = [text for batch in loader for text in tokenizer.batch_decode(batch["input_ids"], True)]
        assert sorted(seen, key=len) == sentences
    data = module(path, ["sentence"], tokenizer, labelled, **settings, held_out=4)
    assert (len(data.train), len(data.validation), len(data.further["other"])) == (12, 4, 4)
    with pytest.raises(ConfigError, match=r"no split gone; .*mismatched"):
        module(path, ["sentence"], tokenizer, labelled, validation="matched", also={"other": "gone"})


def test_the_splits_of_the_built_in_task_are_disjoint_and_follow_from_the_seed(tokenizer):
    def made(seed):
        data = SyntheticNLI(rows=200, held_out=60, tokenizer=tokenizer, seed=seed)
        data.setup()
        return data

    one, again, other = made(1), made(1), made(2)
    assert one.train["input_ids"][:] == again.train["input_ids"][:] != other.train["input_ids"][:]
    held_out = [sorted(pairs(data.validation, tokenizer)) for data in (one, other)]
    assert held_out[0] == held_out[1] and len(set(held_out[0])) == 60
    for data in (one, other):
        train = set(pairs(data.train, tokenizer))
        assert 190 < len(train) == len(data.train) <= 200 and not train & set(held_out[0])
        assert tokenizer.unk_token_id not in {i for ids in data.train["input_ids"] for i in ids}
        counts = np.bincount(data.train["labels"], minlength=3)
        assert counts.min() > 55  # of 200 rows in three even parts


def test_a_real_task_comes_whole(shared_data, tokenizer):
    path = shared_data / "data" / "glue" / "rte"
    if not path.is_dir():
        pytest.skip(f"no {path}")
    expected = pd.read_parquet(path / "validation.parquet")
    data = module(str(path), ["sentence1", "sentence2"], tokenizer, labelled, rows=50, max_length=32, batch_size=16)
    assert len(data.train) == 50
    assert np.bincount(data.validation["labels"]).tolist() == expected["label"].value_counts().sort_index().tolist()


# -- what is refused


@pytest.mark.parametrize("proxy", [0, 1.5, -0.1])
def test_a_proxy_that_is_no_fraction_is_refused(text_dataset, tokenizer, proxy):
    with pytest.raises(ConfigError, match=f"^proxy={proxy}: .*above 0 .*at most 1"):
        TextDataModule(text_dataset, COLUMNS, tokenizer=tokenizer, proxy=proxy)


@pytest.mark.parametrize("name", ["rows", "held_out", "max_length", "batch_size"])
def test_a_size_below_1_is_refused(text_dataset, tokenizer, name):
    with pytest.raises(ConfigError, match=f"^{name}=0: "):
        TextDataModule(text_dataset, COLUMNS, tokenizer=tokenizer, **{name: 0})


@pytest.mark.parametrize("kind", [TextDataModule, labelled])
def test_data_that_is_not_there_is_refused_with_its_path(tmp_path, tokenizer, kind):
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "absent", tmp_path / "empty", "nobody-has-this/data-set"):
        with pytest.raises(ConfigError, match=f"^path={path}"):
            module(str(path), ["text"], tokenizer, kind)


def test_files_that_cannot_be_read_are_refused_with_their_path(tmp_path, tokenizer):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(ConfigError, match=f"^path={tmp_path}"):
        module(str(tmp_path), ["text"], tokenizer)


def test_a_column_that_is_not_there_is_refused_with_those_that_are(text_dataset, tokenizer):
    message = "column {}; .*premise, hypothesis, label"
    with pytest.raises(ConfigError, match=message.format("text")):
        module(text_dataset, ["text"], tokenizer)
    with pytest.raises(ConfigError, match=message.format("entailment")):
        module(text_dataset, COLUMNS, tokenizer, labelled, label="entailment")


@pytest.mark.parametrize("setting", ["split", "validation"])
def test_a_split_that_is_not_there_is_refused_with_those_that_are(text_dataset, tokenizer, setting):
    for kind in (TextDataModule, labelled):
        with pytest.raises(ConfigError, match=r"split dev; .*train, validation"):
            module(text_dataset, COLUMNS, tokenizer, kind, **{setting: "dev"})


def test_a_wrong_extra_source_is_refused_with_its_path(text_dataset, tmp_path, tokenizer):
    extra = [{"path": str(tmp_path / "gone"), "columns": ["text"]}]
    with pytest.raises(ConfigError, match=f"^extra.0.path={tmp_path / 'gone'}"):
        module(text_dataset, COLUMNS, tokenizer, extra=extra)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_split_without_any_label_is_refused(tmp_path, tokenizer, split):
    """As GLUE's test splits are."""
    rows = [{"sentence": "dogs are running", "label": i % 2} for i in range(4)]
    hidden = [row | {"label": -1} for row in rows]
    path = write(tmp_path / "d", **({"train": rows, "validation": rows} | {split: hidden}))
    with pytest.raises(ConfigError, match=f"^path={path}"):
        module(path, ["sentence"], tokenizer, labelled)


def test_texts_without_any_sentence_are_refused(tmp_path, tokenizer):
    path = write(tmp_path / "d", train=[{"text": "only headings"}] * 4)
    with pytest.raises(ConfigError, match=f"^path={path}"):
        module(path, ["text"], tokenizer, sentences=True)


def test_sentences_of_two_columns_are_refused(tmp_path, tokenizer):
    rows = [{"premise": "All dogs are running. No cats are sleeping.", "hypothesis": "dogs"}] * 20
    with pytest.raises(ConfigError, match="^sentences=true: must be false"):
        module(write(tmp_path / "d", train=rows), COLUMNS, tokenizer, sentences=True)


def test_a_single_row_cannot_be_trained_on_and_held_out(tmp_path, tokenizer):
    path = write(tmp_path / "d", train=[{"text": "all dogs are running"}])
    with pytest.raises(ConfigError, match=f"^path={path}"):
        module(path, ["text"], tokenizer)


# -- batches by tokens


def sampler(budget, seed=0, epoch=0, rows=2000, **settings):
    lengths = np.random.default_rng(0).integers(3, 60, rows)
    return lengths, BucketSampler(lengths, batch_tokens=budget, seed=seed, epoch=lambda: epoch, **settings)


@pytest.mark.parametrize("budget", [120, 500, 4000, 10**6])
def test_batches_by_tokens_hold_about_as_many_and_every_row_once(budget):
    for epoch in range(3):
        lengths, batches = sampler(budget, epoch=epoch)
        made = list(batches)
        assert len(made) == len(batches) == max(1, lengths.sum() // budget)  # the same in every epoch
        assert sorted(row for batch in made for row in batch) == list(range(2000))
        tokens = np.array([lengths[batch].sum() for batch in made])
        mean = lengths.sum() / len(made)
        assert (np.abs(tokens - mean) < 60 + 0.2 * mean).all()  # a row more or less, and windows are not all alike
    assert [*sampler(budget, epoch=1)[1]] == [*sampler(budget, epoch=1)[1]]
    if budget < 10**6:
        assert [*sampler(budget, epoch=1)[1]] != [*sampler(budget, epoch=2)[1]] != [*sampler(budget, 1, 2)[1]]


def test_batches_by_tokens_hold_rows_of_like_length():
    lengths, batches = sampler(2000, rows=20_000)
    spread = np.mean([np.ptp(lengths[batch]) for batch in batches])
    assert spread < 3 and len({len(batch) for batch in batches}) > 10


@pytest.mark.parametrize("shuffle", [True, False])
def test_shares_of_batches_by_tokens_make_up_the_whole(shuffle):
    shares = [list(sampler(500, shuffle=shuffle, rank=rank, world=3)[1]) for rank in range(3)]
    whole = list(sampler(500, shuffle=shuffle)[1])
    assert [len(share) for share in shares] == [
        len(sampler(500, shuffle=shuffle, rank=r, world=3)[1]) for r in range(3)
    ]
    assert sorted(row for share in shares for batch in share for row in batch) == list(range(2000))
    assert [sorted(row for part in parts for row in part) for parts in zip(*shares, strict=False)] == [
        sorted(batch) for batch in whole
    ]


def test_tokenized_rows_are_found_again(text_dataset, tokenizer, monkeypatch):
    first = module(text_dataset, COLUMNS, tokenizer, validation="validation")
    monkeypatch.setattr(type(tokenizer), "__call__", None)  # nobody tokenizes again
    again = module(text_dataset, COLUMNS, tokenizer, validation="validation")
    assert again.train["input_ids"][:] == first.train["input_ids"][:]
    with pytest.raises(TypeError):
        module(text_dataset, COLUMNS, tokenizer, validation="validation", max_length=13)

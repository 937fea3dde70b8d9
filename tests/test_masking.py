"""Masked text: how much is hidden and how, what never is, and what the masks depend on."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from labelled import labelled
from scipy.stats import binom
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from kdnas.base.errors import ConfigError
from kdnas.datamodules import Masking, TextDataModule, grammar
from kdnas.datamodules.flat import PadCollator
from kdnas.datamodules.masking import MaskingCollator

COLUMNS = ["premise", "hypothesis"]
UNKNOWN = " zyzzyva"


@pytest.fixture(params=["teacher", "roberta_teacher"])
def tokenizer(request):
    """WordPiece, and byte-level BPE."""
    return AutoTokenizer.from_pretrained(request.getfixturevalue(request.param))


def encoded(tokenizer, masking, texts, pairs=None):
    batch = tokenizer(texts, pairs)
    masking.annotate(batch)
    return [{name: values[i] for name, values in batch.items()} for i in range(len(texts))]


def collator(tokenizer, masking, seed=0, epoch=0):
    def pad(rows):
        return PadCollator(tokenizer.pad_token_id)([{k: torch.tensor(v) for k, v in row.items()} for row in rows])

    return MaskingCollator(tokenizer, masking, seed, lambda: epoch, pad)


def long_texts(rows=64, words=60):
    rng = np.random.default_rng(0)
    vocabulary = sorted(grammar.vocabulary())
    return [" ".join(rng.choice(vocabulary, rng.integers(words // 2, words))) + UNKNOWN for _ in range(rows)]


def within(count, trials, probability):
    """Whether a count is one of the middle 99.99 % of a binomial distribution."""
    low, high = binom.interval(0.9999, trials, probability)
    return low <= count <= high


# -- how much is hidden, and how


@pytest.mark.parametrize("probability", [0.15, 0.4])
def test_tokens_are_chosen_and_hidden_as_often_as_in_bert(tokenizer, probability):
    masking = Masking(probability)
    rows = encoded(tokenizer, masking, long_texts())
    clean = tokenizer.pad(rows, return_tensors="pt", pad_to_multiple_of=8)["input_ids"]
    special = torch.tensor(np.isin(clean, tokenizer.all_special_ids))
    assert special.any(1).all() and (clean == tokenizer.pad_token_id).any()
    tokens = chosen = hidden = kept = 0
    for epoch in range(10):
        batch = collator(tokenizer, masking, epoch=epoch)(rows)
        guessed, inputs = batch["labels"] != -100, batch["input_ids"]
        assert not (guessed & special).any()
        assert torch.equal(batch["labels"][guessed], clean[guessed])
        assert torch.equal(inputs[~guessed], clean[~guessed])
        tokens += int((~special).sum())
        chosen += int(guessed.sum())
        hidden += int((inputs[guessed] == tokenizer.mask_token_id).sum())
        kept += int((inputs[guessed] == clean[guessed]).sum())
    # a random token is the mask, or the one that was there, once in a vocabulary
    share = 0.1 / len(tokenizer)
    assert tokens > 15_000 and within(chosen, tokens, probability)
    assert within(hidden, chosen, 0.8 + share) and within(kept, chosen, 0.1 + share)


# -- whole words


@pytest.fixture
def pieces(tmp_path):
    """A WordPiece that cuts words into letters, so that every word has several tokens."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *".,'京北", *letters, *(f"##{letter}" for letter in letters)]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return AutoTokenizer.from_pretrained(tmp_path)


def words_of(tokens, wordpiece):
    """Runs of places that make a word by the sign in the tokens: ## for the next part, Ġ for the first."""
    runs = []
    for place, token in enumerate(tokens):
        goes_on = token.startswith("##") if wordpiece else token.isalpha() and token[0] != "Ġ"
        if goes_on and runs and place:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def test_words_of_wordpieces_are_hidden_whole(pieces):
    masking = Masking(0.3, whole_word=True)
    texts = ["dogs don't run, in 北京.", "cats, all of them, are sleeping in the park. they are"] * 20
    rows = encoded(pieces, masking, texts, pairs=["no owls", "two fish."] * 20)
    chosen = words = tokens = guessed_tokens = hidden = 0
    for epoch in range(10):
        batch = collator(pieces, masking, epoch=epoch)(rows)
        for row, ids, labels in zip(rows, batch["input_ids"], batch["labels"], strict=True):
            names = pieces.convert_ids_to_tokens(row["input_ids"])
            assert (labels[len(names) :] == -100).all()
            for run in words_of(names, wordpiece=True):
                guessed = labels[run] != -100
                assert guessed.all() or not guessed.any()
                if names[run[0]] in pieces.all_special_tokens:
                    assert not guessed.any()
                    continue
                words, chosen = words + 1, chosen + int(guessed[0])
                tokens, guessed_tokens = tokens + len(run), guessed_tokens + int(guessed.sum())
                hidden += int((ids[run][guessed] == pieces.mask_token_id).sum())
    assert words > 5000 and within(chosen, words, 0.3)
    assert guessed_tokens / tokens == pytest.approx(0.3, abs=0.03)
    assert within(hidden, guessed_tokens, 0.8 + 0.1 / len(pieces))


def test_neighbours_without_a_space_are_chosen_by_themselves(pieces):
    """Punctuation, and Chinese characters: they are words of their own."""
    masking = Masking(0.5, whole_word=True)
    rows = encoded(pieces, masking, ["dogs, 北京"])
    names = pieces.convert_ids_to_tokens(rows[0]["input_ids"])
    assert names == ["[CLS]", "d", "##o", "##g", "##s", ",", "北", "京", "[SEP]"]
    labels = torch.cat([collator(pieces, masking, epoch=epoch)(rows)["labels"] for epoch in range(400)])
    guessed = (labels != -100)[:, [4, 5, 6, 7]].double()
    apart = np.corrcoef(guessed.T.numpy())
    assert np.abs(apart - np.eye(4)).max() < 0.25  # five standard errors


def test_words_of_bytes_are_hidden_whole(roberta_teacher):
    """Letters of several bytes too, whose tokens all have the same offsets."""
    tokenizer = AutoTokenizer.from_pretrained(roberta_teacher)
    masking = Masking(0.4, whole_word=True)
    text = "all tremendously zealous dogs are 北京 running quizzically"
    rows = encoded(tokenizer, masking, [text])
    runs = [[], [*range(1, 1 + len(tokenizer.tokenize("all")))]]
    for word in text.split()[1:]:
        start = runs[-1][-1] + 1
        runs.append([*range(start, start + len(tokenizer.tokenize(f" {word}")))])
    assert runs[-1][-1] == len(rows[0]["input_ids"]) - 2 and sum(len(run) > 1 for run in runs) >= 4
    seen = []
    for epoch in range(200):
        guessed = collator(tokenizer, masking, epoch=epoch)(rows)["labels"][0] != -100
        assert all(guessed[run].all() or not guessed[run].any() for run in runs)
        seen.append([bool(guessed[run[0]]) for run in runs[1:]])
    assert within(np.sum(seen), np.size(seen), 0.4)


# -- what the masks depend on


def masks(loader):
    return [(batch["input_ids"].tolist(), batch["labels"].tolist()) for batch in loader]


def module(path, tokenizer, kind=TextDataModule, **settings):
    settings = {"validation": "validation", "batch_size": 8, "masking": Masking()} | settings
    data = kind(path, COLUMNS, tokenizer=tokenizer, **settings)
    data.setup("fit")
    return data


class At:
    """Stands for a trainer in some epoch."""

    def __init__(self, epoch):
        self.current_epoch = epoch


@pytest.mark.parametrize("whole_word", [False, True])
def test_held_out_masks_are_always_the_same_and_training_masks_follow_the_epoch(text_dataset, tokenizer, whole_word):
    data, again = (module(text_dataset, tokenizer, masking=Masking(whole_word=whole_word)) for _ in range(2))
    held_out, loader, train = data.val_dataloader(), data.train_dataloader(), []
    expected = masks(held_out)
    for epoch in range(3):
        data.trainer = At(epoch)
        train.append(masks(loader))
        assert masks(held_out) == masks(data.val_dataloader()) == expected
    assert sum(len(ids) for ids, _ in expected) == 20
    assert train[0] != train[1] != train[2] != train[0]

    again.first_epoch = 2  # as a resumed run, which reads its first batch before it knows its epoch
    assert masks(again.train_dataloader()) == train[2]
    assert masks(again.val_dataloader()) == expected


def test_a_row_that_comes_again_is_masked_anew(teacher):
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    rows = encoded(tokenizer, Masking(), long_texts(8))
    settings = [(0, 0), (0, 1), (1, 0)]
    labels = [collator(tokenizer, Masking(), *setting)(rows)["labels"].tolist() for setting in settings]
    assert labels == [collator(tokenizer, Masking(), *setting)(rows)["labels"].tolist() for setting in settings]
    assert labels[0] != labels[1] != labels[2] != labels[0]


def test_the_global_generator_plays_no_part(teacher):
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    rows, state, made = encoded(tokenizer, Masking(), long_texts(8)), torch.get_rng_state(), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        made.append(collator(tokenizer, Masking())(rows)["labels"].tolist())
        assert torch.equal(torch.get_rng_state(), before)
    torch.set_rng_state(state)
    assert made[0] == made[1]


def test_labels_of_a_task_give_way(text_dataset, teacher):
    data = module(text_dataset, AutoTokenizer.from_pretrained(teacher), partial(labelled, num_labels=3))
    batch = next(iter(data.train_dataloader()))
    assert batch["labels"].shape == batch["input_ids"].shape


def test_text_is_left_as_it_is_unless_asked(text_dataset, teacher):
    data = module(text_dataset, AutoTokenizer.from_pretrained(teacher), masking=None)
    expected = sorted(map(tuple, data.train["input_ids"]))
    found = []
    for batch in data.train_dataloader():
        assert "labels" not in batch
        rows = zip(batch["input_ids"].tolist(), batch["attention_mask"].sum(1).tolist(), strict=True)
        found += [tuple(ids[:count]) for ids, count in rows]
    assert sorted(found) == expected


# -- refusals


@pytest.mark.parametrize("probability", [0, 1, -0.1, 1.5, float("nan")])
def test_a_probability_that_leaves_nothing_to_learn_is_refused(probability):
    with pytest.raises(ConfigError, match=f"^probability={probability}: must be above 0 and below 1$"):
        Masking(probability)


def plain_tokenizer(**special):
    """No pre-tokenizer: what is not in the vocabulary as a whole is unknown as a whole."""
    vocabulary = {"[UNK]": 0, "[PAD]": 1, "[MASK]": 2, "dogs": 3}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", **special)


def test_a_tokenizer_without_a_mask_token_is_refused(text_dataset):
    with pytest.raises(ConfigError, match="^masking: .*no mask token; must be null$"):
        TextDataModule(text_dataset, COLUMNS, tokenizer=plain_tokenizer(), max_length=64, masking=Masking())


def test_a_tokenizer_that_knows_no_words_is_refused_whole_words(text_dataset):
    tokenizer = plain_tokenizer(mask_token="[MASK]")
    settings = {"tokenizer": tokenizer, "max_length": 64}
    TextDataModule(text_dataset, COLUMNS, masking=Masking(), **settings)
    with pytest.raises(ConfigError, match=r"^masking.whole_word=true: .*does not tell words apart$"):
        TextDataModule(text_dataset, COLUMNS, masking=Masking(whole_word=True), **settings)

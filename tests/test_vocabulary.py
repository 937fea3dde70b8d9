"""Training the used rows of a vocabulary against training all of it."""

import copy

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

from kdnas.training.used_embeddings import UsedRows, restore_tables, train_used_rows

SIZES = {"vocab_size": 50, "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
SIZES |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
USED = torch.tensor([0, 3, 7, 20, 49])


def model_of(kind=BertModel):
    torch.manual_seed(0)
    return kind(BertConfig(**SIZES))


def steps(model, count=5, decay=0.0):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=decay)
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        tokens = USED[torch.randint(len(USED), (4, 6), generator=generator)]
        states = model(input_ids=tokens).last_hidden_state
        (states - 1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_the_used_rows_end_as_if_all_were_trained():
    whole, few = model_of(), model_of()
    first = whole.get_input_embeddings().weight.detach().clone()
    train_used_rows(few, USED)
    assert few.get_input_embeddings().rows.shape == (5, 8)
    steps(whole)
    steps(few)
    expected, found = whole.state_dict(), few.state_dict()
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, msg=name)
    table = found["embeddings.word_embeddings.weight"]
    others = [i for i in range(50) if i not in USED.tolist()]
    assert torch.equal(table[others], first[others]) and not torch.equal(table[3], first[3])


def test_only_the_decay_of_what_is_never_used_is_missing():
    whole, few = model_of(), model_of()
    train_used_rows(few, USED)
    steps(whole, decay=0.1)
    steps(few, decay=0.1)
    tables = [model.state_dict()["embeddings.word_embeddings.weight"] for model in (whole, few)]
    torch.testing.assert_close(tables[0][USED], tables[1][USED])


def test_a_model_is_made_whole_again_and_saved(tmp_path):
    model = model_of(BertForSequenceClassification)
    train_used_rows(model, USED)
    with torch.no_grad():
        model.get_input_embeddings().rows.add_(1)
    expected = copy.deepcopy(model.state_dict())
    restore_tables(model)
    assert isinstance(model.get_input_embeddings(), torch.nn.Embedding)
    model.save_pretrained(tmp_path)
    loaded = BertForSequenceClassification.from_pretrained(tmp_path).state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(values, expected[name]) for name, values in loaded.items())


def test_a_whole_table_is_loaded_into_the_used_rows():
    model, other = model_of(), model_of()
    steps(other)
    train_used_rows(model, USED)
    model.load_state_dict(other.state_dict())
    for name, values in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], values), name
    tokens = USED[None]
    torch.testing.assert_close(model(tokens).last_hidden_state, other(tokens).last_hidden_state)


@pytest.mark.parametrize(("kind", "used"), [(BertModel, torch.arange(45)), (BertForMaskedLM, USED)])
def test_tables_of_which_most_is_used_or_that_are_used_twice_stay(kind, used):
    model = model_of(kind)
    train_used_rows(model, used)
    assert not isinstance(model.get_input_embeddings(), UsedRows)

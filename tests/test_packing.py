"""Packed rows against transformers' own forward pass over padded ones."""

import copy

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoTokenizer,
    BatchEncoding,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)

from kdnas.models import packing
from kdnas.models.packing import outputs

SIZES = {"vocab_size": 60, "num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 4, "num_labels": 3}
SIZES |= {"intermediate_size": 32, "max_position_embeddings": 40, "hidden_dropout_prob": 0.0, "initializer_range": 0.5}
SIZES |= {"attention_probs_dropout_prob": 0.0}
FAMILIES = {
    "bert": (BertModel, BertConfig),
    "bert classifier": (BertForSequenceClassification, BertConfig),
    "roberta": (RobertaModel, RobertaConfig),
    "roberta classifier": (RobertaForSequenceClassification, RobertaConfig),
    "electra classifier": (ElectraForSequenceClassification, ElectraConfig),
    "albert classifier": (AlbertForSequenceClassification, AlbertConfig),
}
PACKING = ("bert", "bert classifier", "roberta", "roberta classifier", "electra classifier")


def model_of(family):
    kind, config = FAMILIES[family]
    torch.manual_seed(0)
    return kind(config(**SIZES))


def batch_of(*lengths, left=False):
    torch.manual_seed(1)
    width = max(lengths) + 3
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    if left:
        mask = mask.flip(1)
    tokens = torch.where(mask.bool(), torch.randint(5, 60, mask.shape), 1)  # RoBERTa's padding
    return BatchEncoding({"input_ids": tokens, "attention_mask": mask})


def padded(model, batch, layers):
    """What transformers gives for the padded batch, at its real tokens."""
    given = model(**{name: batch[name] for name in ("input_ids", "attention_mask")}, output_hidden_states=True)
    real = batch["attention_mask"].bool()
    return {layer: given.hidden_states[layer][real] for layer in layers}, given.get("logits")


@pytest.mark.parametrize("lengths", [(7, 7, 3, 12, 1, 7), (5,), (4, 4, 4)])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_are_what_padded_ones_are(family, lengths):
    model, batch = model_of(family).eval(), batch_of(*lengths)
    states, logits = padded(model, batch, (1, 3))
    given = outputs(model, batch, {1, 3})
    for layer, expected in states.items():
        torch.testing.assert_close(given.states[layer], expected, rtol=1e-4, atol=1e-5)
    if logits is not None:
        torch.testing.assert_close(given.logits, logits, rtol=1e-4, atol=1e-5)
    assert packing._packs(model) == (family in PACKING)


@pytest.mark.parametrize("short", [0, 256])  # by PyTorch's fused attention, and by plain products
@pytest.mark.parametrize("family", ["bert classifier", "roberta classifier"])
def test_gradients_are_those_of_padded_rows(family, short, monkeypatch):
    monkeypatch.setattr(packing, "SHORT", short)
    batch, gradients = batch_of(7, 3, 3, 9), []
    for run in (outputs, lambda *given: padded(*given)):
        model = model_of(family)
        given = run(model, batch, (2,))
        states, logits = given if isinstance(given, tuple) else (given.states, given.logits)
        (states[2].square().sum() + logits.square().sum()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-4, msg=name)


def test_a_batch_that_is_padded_on_the_left_or_brings_its_lengths():
    model = model_of("roberta").eval()
    lengths = [4, 9, 2]
    left, right = batch_of(*lengths, left=True), batch_of(*lengths)
    left["input_ids"][left["attention_mask"].bool()] = right["input_ids"][right["attention_mask"].bool()]
    expected = outputs(model, right, {3}).states[3]
    torch.testing.assert_close(outputs(model, left, {3}).states[3], expected, rtol=1e-4, atol=1e-5)
    told = BatchEncoding({**batch_of(*lengths), "lengths": lengths})
    assert torch.equal(outputs(model, told, {3}).states[3], expected)


def test_masked_tokens_have_the_logits_of_transformers_head():
    torch.manual_seed(0)
    model, batch = BertForMaskedLM(BertConfig(**SIZES)).eval(), batch_of(6, 2, 8)
    batch["labels"] = torch.full_like(batch["input_ids"], -100)
    batch["labels"][[0, 2, 2], [1, 0, 5]] = 7
    _, logits = padded(model, batch, ())
    given = outputs(model, batch).logits
    torch.testing.assert_close(given, logits[[0, 2, 2], [1, 0, 5]], rtol=1e-4, atol=1e-5)


def test_a_family_that_takes_no_packed_rows_gets_padded_ones():
    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=60, n_layers=2, dim=16, n_heads=2, hidden_dim=32, max_position_embeddings=40)
    model, batch = DistilBertModel(config).eval(), batch_of(5, 3)
    states, _ = padded(model, batch, (1, 2))
    for layer, expected in outputs(model, batch, {1, 2}).states.items():
        torch.testing.assert_close(expected, states[layer])


def test_the_config_is_left_as_it_was():
    model = model_of("bert")
    before = copy.deepcopy(model.config.to_dict()), model.config._attn_implementation
    outputs(model, batch_of(3, 2), {1})
    assert (model.config.to_dict(), model.config._attn_implementation) == before


@pytest.mark.long
def test_a_compiled_encoder_says_the_same(teacher):
    model = BertModel.from_pretrained(teacher).train()
    batch = AutoTokenizer.from_pretrained(teacher)(["no dogs", "all cats are big", "cats"], padding=True)
    batch = batch.convert_to_tensors("pt")
    compiled = torch.compile(model, dynamic=True)
    for rows in (3, 2):
        some = BatchEncoding({name: values[:rows] for name, values in batch.items()})
        for layer, expected in outputs(model.eval(), BatchEncoding(dict(some)), {1, 4}).states.items():
            torch.testing.assert_close(outputs(model, some, {1, 4}, compiled).states[layer], expected)

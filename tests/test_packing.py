"""Packed rows against transformers' own forward pass over padded ones."""

import copy
from inspect import signature

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AlbertForSequenceClassification,
    AutoTokenizer,
    BatchEncoding,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForSequenceClassification,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaModel,
)

from kdnas.base.errors import ConfigError
from kdnas.models import attention, forward
from kdnas.models.features import LOGITS, MASKED_LOGITS, Feature, Kind, Per, hidden_state
from kdnas.models.forward import outputs

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
PACKING = ("bert", "bert classifier", "roberta", "roberta classifier", "electra classifier", "albert classifier")


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
    expected = {hidden_state(layer): values for layer, values in states.items()}
    expected |= {} if logits is None else {LOGITS: logits}
    features = outputs(model, batch, set(expected))
    assert features.keys() == expected.keys()
    for feature, values in features.items():
        torch.testing.assert_close(values, expected[feature], rtol=1e-4, atol=1e-5)
    assert forward._way(model).packed == (family in PACKING)


@pytest.mark.parametrize("short", [0, 256])  # by PyTorch's fused attention, and by plain products
@pytest.mark.parametrize("family", ["bert classifier", "roberta classifier"])
def test_gradients_are_those_of_padded_rows(family, short, monkeypatch):
    monkeypatch.setattr(attention, "SHORT", short)
    batch, gradients = batch_of(7, 3, 3, 9), []
    for packed in (True, False):
        model = model_of(family)
        if packed:
            states, logits = outputs(model, batch, {hidden_state(2), LOGITS}).values()
        else:
            by_layer, logits = padded(model, batch, (2,))
            states = by_layer[2]
        (states.square().sum() + logits.square().sum()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-4, msg=name)


def test_a_batch_that_is_padded_on_the_left_or_brings_its_lengths():
    model = model_of("roberta").eval()
    lengths = [4, 9, 2]
    left, right = batch_of(*lengths, left=True), batch_of(*lengths)
    left["input_ids"][left["attention_mask"].bool()] = right["input_ids"][right["attention_mask"].bool()]
    last = hidden_state(3)
    expected = outputs(model, right, {last})[last]
    torch.testing.assert_close(outputs(model, left, {last})[last], expected, rtol=1e-4, atol=1e-5)
    with_lengths = BatchEncoding({**batch_of(*lengths), "lengths": lengths})
    assert torch.equal(outputs(model, with_lengths, {last})[last], expected)


MASKED = {
    "bert": (BertForMaskedLM, BertConfig, True),
    "roberta": (RobertaForMaskedLM, RobertaConfig, True),
    "electra": (ElectraForMaskedLM, ElectraConfig, True),
    "albert": (AlbertForMaskedLM, AlbertConfig, True),
    "distilbert": (DistilBertForMaskedLM, DistilBertConfig, True),
}


@pytest.mark.parametrize("family", MASKED)
def test_masked_tokens_have_the_logits_of_transformers_head(family):
    kind, config, packs = MASKED[family]
    torch.manual_seed(0)
    model, batch = kind(config(**SIZES)).eval(), batch_of(6, 2, 8)
    if "token_type_ids" in signature(model.forward).parameters and model.config.type_vocab_size > 1:
        batch["token_type_ids"] = torch.randint(2, batch["input_ids"].shape) * batch["attention_mask"]
    batch["labels"] = torch.full_like(batch["input_ids"], -100)
    batch["labels"][[0, 2, 2], [1, 0, 5]] = 7
    inputs = {name: values for name, values in batch.items() if name != "labels"}
    logits = model(**inputs).logits[[0, 2, 2], [1, 0, 5]]
    torch.testing.assert_close(outputs(model, batch, {MASKED_LOGITS})[MASKED_LOGITS], logits, rtol=1e-4, atol=1e-5)
    assert forward._way(model).packed == packs


def test_a_family_that_takes_no_packed_rows_gets_padded_ones():
    torch.manual_seed(0)
    model, batch = MPNetModel(MPNetConfig(**SIZES)).eval(), batch_of(5, 3)
    states, _ = padded(model, batch, (1, 2))
    for feature, values in outputs(model, batch, set(map(hidden_state, states))).items():
        torch.testing.assert_close(values, states[feature.layer])
    with pytest.raises(ConfigError, match="^objective: needs logits; a MPNetModel has none"):
        outputs(model, batch, {LOGITS})


def test_the_config_is_left_as_it_was():
    model = model_of("bert")
    before = copy.deepcopy(model.config.to_dict()), model.config._attn_implementation
    outputs(model, batch_of(3, 2), {hidden_state(1)})
    assert (model.config.to_dict(), model.config._attn_implementation) == before


@pytest.mark.long
def test_a_compiled_encoder_says_the_same(teacher):
    model = BertModel.from_pretrained(teacher, num_hidden_layers=2).train()
    batch = AutoTokenizer.from_pretrained(teacher)(["no dogs", "all cats are big", "cats"], padding=True)
    batch = batch.convert_to_tensors("pt")
    compiled = torch.compile(model, dynamic=True)
    for rows in (3, 2):
        some = BatchEncoding({name: values[:rows] for name, values in batch.items()})
        features = {hidden_state(1), hidden_state(2)}
        for feature, expected in outputs(model.eval(), BatchEncoding(dict(some)), features).items():
            torch.testing.assert_close(outputs(model, some, features, compiled)[feature], expected)


@pytest.mark.parametrize(
    ("kind", "per"), [(Kind.HIDDEN_STATE, Per.ROW), (Kind.QUERY, Per.MASKED_TOKEN), (Kind.LOGITS, Per.TOKEN)]
)
def test_a_feature_that_no_model_has_is_refused(kind, per):
    with pytest.raises(ValueError, match=f"^{kind} per {per}: must be per "):
        Feature(kind, 1, per)

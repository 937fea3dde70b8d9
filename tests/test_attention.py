"""Queries, keys and values, windows and attention maps of every family, against transformers' own modules."""

import copy

import pytest
import torch
from families import SUPPORTED, batch_of, config_of, families
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from kdnas.base.errors import ConfigError
from kdnas.distillation.terms import AttentionMaps
from kdnas.models import forward
from kdnas.models.architecture import Architecture
from kdnas.models.attention import Attention, check_features
from kdnas.models.families import family_of
from kdnas.models.families.base import FAMILIES
from kdnas.models.features import ATTENTION_INPUTS, LOGITS, MASKED_LOGITS, Feature, Kind, Per, hidden_state
from kdnas.models.forward import WAYS, Way, outputs

PACKED, PADDED = WAYS[0], WAYS[1]
GIVING = sorted(SUPPORTED.keys() - {"big_bird", "convbert", "nystromformer", "roformer"})
PACKING = {"albert", "bert", "camembert", "data2vec-text", "distilbert", "electra", "ernie", "eurobert", "modernbert"}
PACKING |= {"nomic_bert", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl"}
PLAIN = PACKING | {"megatron-bert", "rembert"}


def model_of(family, auto=AutoModel, **values):
    """A tiny model with weights wide enough for its layers to differ, and without dropout."""
    config = config_of(family, **values)
    config.update(dict.fromkeys(family_of(config).dropouts(config), 0.0))
    torch.manual_seed(3)
    model = auto.from_config(config, attn_implementation="eager").eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model


def features_of(config):
    layers = range(1, config.num_hidden_layers + 1)
    return {Feature(kind, layer) for kind in ATTENTION_INPUTS for layer in layers}


def heads_of(values, config):
    return values.unflatten(-1, (config.num_attention_heads, family_of(config).head_size(config))).transpose(0, 1)


@torch.no_grad()
@pytest.mark.parametrize("family", families(PLAIN))
def test_attention_maps_follow_from_queries_keys_and_windows(family):
    """softmax(Q K^T / sqrt(head size)) over the window is the map that transformers gives."""
    model, batch = model_of(family), batch_of(9, 9, 3, 14)
    maps = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_attentions=True
    ).attentions
    config, described = model.config, family_of(model.config)
    found = outputs(model, batch, features_of(config))
    for layer, theirs in enumerate(maps, start=1):
        begin, window = 0, described.window(config, layer)
        for row, length in enumerate([9, 9, 3, 14]):
            query, key = (
                heads_of(found[Feature(k, layer)][begin : begin + length], config) for k in ATTENTION_INPUTS[:2]
            )
            scores = query @ key.transpose(1, 2) / described.head_size(config) ** 0.5
            if window is not None:
                scores[:, (torch.arange(length)[:, None] - torch.arange(length)).abs() > window] = -torch.inf
            torch.testing.assert_close(scores.softmax(-1), theirs[row, :, :length, :length], rtol=1e-3, atol=1e-5)
            begin += length


@torch.no_grad()
@pytest.mark.parametrize("family", families(GIVING))
def test_packed_and_padded_rows_give_the_same_attention_inputs(family):
    model, batch = model_of(family), batch_of(9, 9, 3, 14)
    features = features_of(model.config)
    padded = forward._run(model, batch, features, PADDED)
    for feature, values in padded.items():
        assert values.shape == (35, feature.width(model.config))
    assert forward._way(model).packed == (family in PACKING)
    if family in PACKING:
        for feature, values in forward._run(model, batch, features, PACKED).items():
            torch.testing.assert_close(values, padded[feature], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("trained", [False, True])
def test_heads_may_share_keys_and_values_on_packed_rows(trained):
    config = config_of("eurobert")
    config.num_key_value_heads = 2
    model, batch, wanted = AutoModel.from_config(config).eval(), batch_of(9, 9, 3, 14), {hidden_state(4)}
    with torch.set_grad_enabled(trained):
        packed, padded = (forward._run(model, batch, wanted, way)[hidden_state(4)] for way in (PACKED, PADDED))
    torch.testing.assert_close(packed, padded, rtol=1e-3, atol=1e-4)


NAMED = {
    **dict.fromkeys(["bert", "roberta", "electra", "xlm-roberta"], "encoder.layer.{}.attention.self.{}"),
    "albert": "encoder.albert_layer_groups.0.albert_layers.0.attention.{}",
    "distilbert": "transformer.layer.{}.attention.{:.1}_lin",
    "mpnet": "encoder.layer.{}.attention.attn.{:.1}",
    "deberta-v2": "encoder.layer.{}.attention.self.{}_proj",
}
"""The paths of transformers' modules that project a layer's states to queries, keys and values."""


@torch.no_grad()
@pytest.mark.parametrize("way", [PACKED, PADDED], ids=["packed", "padded"])
@pytest.mark.parametrize("family", NAMED)
def test_attention_inputs_are_what_transformers_modules_give_for_the_states(family, way):
    if way.packed and family not in PACKING:
        pytest.skip("padded rows alone")
    model, batch, layers = model_of(family), batch_of(9, 1, 12), (1, 3)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    states, real = model(**inputs, output_hidden_states=True).hidden_states, batch["attention_mask"].bool()
    for layer in layers:
        below = states[layer - 1]
        if family == "albert" and layer == 1:
            below = model.encoder.embedding_hidden_mapping_in(model.embeddings(batch["input_ids"]))
        for kind in ATTENTION_INPUTS:
            path = NAMED[family].format(layer - 1, kind) if family != "albert" else NAMED[family].format(kind)
            expected = model.get_submodule(path)(below)
            for per, wanted in ((Per.TOKEN, expected[real]), (Per.FIRST_TOKEN, expected[:, 0])):
                feature = Feature(kind, layer, per)
                found = forward._run(model, batch, {feature}, way)[feature]
                torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_first_versions_of_deberta_split_one_projection_by_heads():
    model, batch = model_of("deberta"), batch_of(8, 8)
    states = model(batch["input_ids"], batch["attention_mask"], output_hidden_states=True).hidden_states[1]
    attention = model.encoder.layer[1].attention.self
    for number, (kind, bias) in enumerate(zip(ATTENTION_INPUTS, (attention.q_bias, 0, attention.v_bias), strict=True)):
        size = 8
        rows = [head * 3 * size + number * size + i for head in range(4) for i in range(size)]
        expected = states @ attention.in_proj.weight[rows].T + bias
        found = outputs(model, batch, {Feature(kind, 2)})[Feature(kind, 2)]
        torch.testing.assert_close(found, expected.flatten(0, 1), rtol=1e-3, atol=1e-4)


def test_attention_inputs_of_padded_rows_have_gradients_and_leave_no_hooks():
    model, batch = model_of("mpnet"), batch_of(5, 3)
    before = copy.deepcopy(model.config.to_dict())
    (values,) = outputs(model, batch, {Feature(Kind.KEY, 2)}).values()
    values.sum().backward()
    assert model.encoder.layer[1].attention.attn.k.weight.grad.abs().sum() > 0
    assert model.encoder.layer[1].attention.attn.q.weight.grad is None
    assert not any(module._forward_hooks for module in model.modules())
    assert model.config.to_dict() == before


@pytest.mark.parametrize("family", sorted(SUPPORTED.keys() - set(GIVING)))
def test_a_family_without_attention_inputs_says_so(family):
    config = config_of(family)
    check_features(config, {hidden_state(1)})
    with pytest.raises(ConfigError, match=f"^objective: needs queries, keys or values; a {family} model gives none$"):
        check_features(config, {Feature(Kind.QUERY, 1)})


# -- windows


@pytest.mark.parametrize("short", [0, 256])  # by PyTorch's fused attention, and by plain products
def test_rows_longer_than_a_window_have_the_states_and_gradients_of_padded_ones(short, monkeypatch):
    monkeypatch.setattr("kdnas.models.attention.SHORT", short)
    batch, found = batch_of(30, 30, 7, 6, 1), []
    model = model_of("modernbert")
    assert [family_of(model.config).window(model.config, layer) for layer in (1, 2, 3, 4)] == [None, 5, 5, None]
    features = {hidden_state(layer) for layer in range(5)}
    for way in (PACKED, PADDED):
        model.zero_grad()
        values = forward._run(model, batch, features, way)
        sum(each.square().mean() for each in values.values()).backward()
        found.append((values, {name: weight.grad.clone() for name, weight in model.named_parameters()}))
    (packed, gradients), (padded, expected) = found
    for feature in features:
        torch.testing.assert_close(packed[feature], padded[feature], rtol=1e-3, atol=1e-4)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-3, msg=name)


def test_the_test_for_packed_rows_notices_a_window_that_is_not_honoured(monkeypatch):
    model = model_of("modernbert", initializer_range=0.017)
    assert forward._way(model).packed
    everything = lambda length, window, device: torch.ones(length, length) > 0  # noqa: E731
    monkeypatch.setattr("kdnas.models.attention.within_window", everything)
    assert not forward._way(model_of("modernbert", initializer_range=0.018)).packed


def test_the_test_for_packed_rows_notices_other_queries(monkeypatch):
    """Also where the states are the same."""
    model = model_of("bert", initializer_range=0.017)
    assert forward._way(model).packed
    keep = Attention.keep

    def doubled(self, layer, kind, values):
        packed = len(values) == 1  # of three rows
        keep(self, layer, kind, 2 * values if kind == Kind.QUERY and packed else values)

    monkeypatch.setattr(Attention, "keep", doubled)
    assert not forward._way(model_of("bert", initializer_range=0.018)).packed


def test_of_a_family_in_no_table_there_are_no_maps(monkeypatch):
    """Its attention may have a bias for each distance, or a bound, that no test of states notices."""
    monkeypatch.delitem(FAMILIES, "ernie")
    with pytest.raises(ConfigError, match="^objective: attention maps of a ernie are not of queries and keys alone"):
        AttentionMaps().build(config_of("ernie"), config_of("ernie"))


# -- heads


@pytest.mark.parametrize("values", [{}, {"classifier_pooling": "mean"}])
def test_classifiers_of_modernbert_read_the_first_token_or_the_mean(values):
    model = model_of("modernbert", AutoModelForSequenceClassification, **values)
    batch = batch_of(9, 9, 3, 14)
    expected = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(forward._run(model, batch, {LOGITS}, PACKED)[LOGITS], expected, rtol=1e-3, atol=1e-4)
    assert forward._way(model) == PACKED


@pytest.mark.parametrize("family", families(SUPPORTED))
def test_the_head_of_a_classifier_in_training_is_transformers_own(family):
    """With dropout in the head alone, from the same seed: its place and share are right."""
    model = model_of(family, AutoModelForSequenceClassification, num_labels=3)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and not name.startswith(model.base_model_prefix):
            module.p = 0.5
    model.train()
    batch, way = batch_of(9, 9, 4), forward._way(model)
    outputs(model, batch, {LOGITS})  # a BigBird changes its modules in its first pass, which draws random numbers
    torch.manual_seed(5)
    expected = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.manual_seed(5)
    found = forward._run(model, batch, {LOGITS}, way)[LOGITS]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("family", ["deberta", "deberta-v2", "modernbert", "mpnet"])
def test_masked_tokens_have_the_logits_of_transformers_own_head(family, legacy):
    if not legacy and not family.startswith("deberta"):
        pytest.skip("one head")
    model = model_of(family, AutoModelForMaskedLM, **({} if legacy else {"legacy": False}))
    batch = batch_of(9, 4)
    batch["labels"] = torch.full_like(batch["input_ids"], -100)
    batch["labels"][[0, 1, 1], [3, 0, 2]] = 7
    expected = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    found = outputs(model, batch, {MASKED_LOGITS})[MASKED_LOGITS]
    torch.testing.assert_close(found, expected[[0, 1, 1], [3, 0, 2]], rtol=1e-3, atol=1e-4)
    assert forward._way(model) == Way(family in PACKING, True)


def test_a_student_of_any_depth_has_the_teachers_pattern_of_windows():
    described = family_of(config_of("modernbert"))
    config = described.resize(config_of("modernbert"), Architecture(8, 4, 32, 48, "gelu"))
    own, short = "full_attention", "sliding_attention"
    assert config.layer_types == [own, short, short, own, short, short, own, short]
    assert described.resize(config, Architecture(2, 4, 32, 48, "gelu")).layer_types == [own, short]

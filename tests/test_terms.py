"""Every loss term against a computation of one row after the other, without batches, padding or packed rows."""

import copy
from functools import partial

import families
import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch.nn import functional
from transformers import AutoModel, BatchEncoding, BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

from kdnas.base.errors import ConfigError
from kdnas.distillation import losses
from kdnas.distillation.losses import maps
from kdnas.distillation.terms import (
    AttentionMaps,
    Embeddings,
    HiddenStates,
    LastHiddenState,
    Logits,
    MaskedTokens,
    Relations,
    SoftTargets,
)
from kdnas.models.features import Kind
from kdnas.models.forward import outputs
from kdnas.training.calibration import calibrate

SIZES = {"vocab_size": 60, "num_labels": 3, "max_position_embeddings": 40, "initializer_range": 0.5}
SIZES |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
STUDENT = {"num_hidden_layers": 2, "hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 20}
TEACHER = {"num_hidden_layers": 4, "hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 32}
LENGTHS = (7, 1, 7, 4, 9, 1)
MASKED = [(0, 2), (2, 1), (2, 6), (4, 8)]
PARTS = {"q": "query", "k": "key", "v": "value"}


def model_of(kind, sizes, seed):
    torch.manual_seed(seed)
    return kind(BertConfig(**SIZES, **sizes)).eval()


def models(kind=BertModel, **student):
    return model_of(kind, STUDENT | student, 0), model_of(kind, TEACHER, 1)


def batch_of(lengths=LENGTHS, masked=()):
    torch.manual_seed(2)
    width = max(lengths) + 2
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    batch = BatchEncoding({"input_ids": torch.randint(5, 60, mask.shape) * mask, "attention_mask": mask})
    if masked:
        batch["labels"] = torch.full_like(batch["input_ids"], -100)
        for row, place in masked:
            batch["labels"][row, place] = batch["input_ids"][row, place]
    return batch


def built(term, student, teacher):
    torch.manual_seed(3)
    term.build(student.config, teacher.config)
    return term


def loss_of(term, student, teacher, batch):
    with torch.no_grad():
        targets = outputs(teacher, batch, term.teacher)
    return term(outputs(student, batch, term.student), targets, batch)


def rows_of(batch):
    """The inputs of each row alone."""
    for tokens, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        yield tokens[mask.bool()][None]


def inside(model, tokens):
    """All that transformers' own modules give for one row: states, queries, keys, values by layer, and attention."""
    found, hooks = {}, []
    encoder = model.base_model
    modules = {("states", 0): encoder.embeddings}
    for i, layer in enumerate(encoder.encoder.layer, start=1):
        modules |= {(part, i): getattr(layer.attention.self, name) for part, name in PARTS.items()}
        modules["states", i] = layer
    for key, module in modules.items():

        def keep(_, __, given, key=key):
            found[key] = (given[0] if isinstance(given, tuple) else given).reshape(tokens.shape[1], -1)

        hooks.append(module.register_forward_hook(keep))
    usual, model.config._attn_implementation = model.config._attn_implementation, "eager"
    given = model(tokens, output_attentions=True)
    model.config._attn_implementation = usual
    for hook in hooks:
        hook.remove()
    for i, attention in enumerate(given.attentions, start=1):
        found["attention", i] = attention[0]
    found["logits", 0] = given.get("logits")
    return found


def pairs_of_rows(student, teacher, batch):
    for tokens in rows_of(batch):
        with torch.no_grad():
            target = inside(teacher, tokens)
        yield inside(student, tokens), target


def scores(values, others, heads):
    """A B^T / sqrt(d) of one row's vectors (length, width), head by head."""
    size = values.shape[1] // heads
    parts = [slice(head * size, (head + 1) * size) for head in range(heads)]
    return [values[:, part] @ others[:, part].T / size**0.5 for part in parts]


def gradients(loss, model):
    model.zero_grad()
    loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


# -- relations


RELATIONS = [
    ({"q-q": 1, "k-k": 1, "v-v": 1}, 4, -2, -1, "kl"),
    ({"q-k": 0.5, "v-v": 2.0, "k-q": 0}, 2, 1, 1, "kl"),
    ({"q-q": 1, "v-q": 3.0}, "teacher", -1, -1, "mse"),
    ({"k-k": 1}, 1, 4, 2, "mse"),
]


def relations_by_hand(student, teacher, batch, pairs, heads, layer, student_layer, loss):
    """The loss with Eq. 6's cross entropy, and the teacher's entropy, which is 0 for `mse`."""
    layer, student_layer = (number % (count + 1) for number, count in ((layer, 4), (student_layer, 2)))
    total = entropy = 0.0
    for own, target in pairs_of_rows(student, teacher, batch):
        for name, weight in pairs.items():
            a, b = name.split("-")
            mine = scores(own[a, student_layer], own[b, student_layer], heads)
            theirs = scores(target[a, layer], target[b, layer], heads)
            for one, other in zip(mine, theirs, strict=True):
                one, other = one.softmax(-1), other.softmax(-1)
                for p, q in zip(other, one, strict=True):  # a token's
                    total += weight / heads * ((p - q).square().mean() if loss == "mse" else -(p * q.log()).sum())
                    entropy += 0.0 if loss == "mse" else -weight / heads * (p * p.log()).sum()
    return total / sum(LENGTHS), entropy / sum(LENGTHS)


@pytest.mark.parametrize("largest", [2**18, 1, 300])
@pytest.mark.parametrize(("pairs", "heads", "layer", "student_layer", "loss"), RELATIONS)
def test_relations(pairs, heads, layer, student_layer, loss, largest, monkeypatch):
    """Values and gradients, with Eq. 6's cross entropy itself; all rows of a length at once, or row by row."""
    monkeypatch.setitem(maps.LARGEST, "cpu", largest)
    (student, teacher), batch = models(), batch_of()
    term = built(Relations(pairs, loss, layer, student_layer, heads), student, teacher)
    found = loss_of(term, student, teacher, batch)
    count = 4 if heads == "teacher" else heads
    total, entropy = relations_by_hand(student, teacher, batch, pairs, count, layer, student_layer, loss)
    assert found.value.item() == pytest.approx((total - entropy).item(), rel=1e-4) and found.value > 1e-4
    assert found.count == sum(LENGTHS)
    expected = gradients(total, student)
    own = gradients(found.value, student)
    assert {name for name, value in own.items() if value.any()} == {n for n, value in expected.items() if value.any()}
    for name, value in own.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-6, msg=name)


def test_the_best_relations_are_the_teachers_own():
    (_, teacher), batch = models(), batch_of()
    for loss in ("kl", "mse"):
        term = built(Relations(loss=loss, layer=-1, heads=8), teacher, teacher)
        assert loss_of(term, teacher, teacher, batch).value.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", ["kl", "mse"])
@pytest.mark.parametrize("pairs", [{"q-q": 1, "k-k": 1, "v-v": 1}, {"q-k": 0.5, "v-v": 2.0}])
def test_normalized_relations_have_a_loss_of_1_where_they_are_uniform_and_0_where_they_are_the_teachers(loss, pairs):
    (student, teacher), batches = models(), [batch_of(), batch_of((3, 8))]
    term, plain = (
        built(Relations(pairs, loss, heads=4, normalize=name), student, teacher) for name in ("variance", "none")
    )
    calibrate([term], [BatchEncoding(dict(batch)) for batch in batches], partial(outputs, teacher), torch.device("cpu"))
    raw = [loss_of(plain, student, teacher, batch).value.item() for batch in batches]
    uniform = copy.deepcopy(student)
    for name in PARTS.values():
        for parameter in uniform.encoder.layer[-1].attention.self.get_submodule(name).parameters():
            parameter.data.zero_()
    total, entropy = relations_by_hand(uniform, teacher, batches[0], pairs, 4, -2, -1, loss)
    unit = (total - entropy) * sum(LENGTHS)
    worst = [loss_of(term, uniform, teacher, batch) for batch in batches]
    mean = sum(mean.total for mean in worst) / sum(mean.count for mean in worst)
    assert mean.item() == pytest.approx(1, rel=1e-5)
    assert (worst[0].total * term.uniform).item() == pytest.approx(unit.item(), rel=1e-4) and unit > 0.01
    found = [loss_of(term, student, teacher, batch).value.item() for batch in batches]
    assert found == pytest.approx([value / term.uniform.item() for value in raw], rel=1e-5)
    best = built(Relations(pairs, loss, layer=-1, heads=4, normalize="variance"), teacher, teacher)
    calibrate([best], batches, partial(outputs, teacher), torch.device("cpu"))
    assert loss_of(best, teacher, teacher, batches[0]).value.item() == pytest.approx(0, abs=1e-5)


def test_gradients_of_the_maps_are_those_of_finite_differences():
    torch.manual_seed(0)
    runs, teacher = [(2, 3), (1, 1)], [torch.randn(7, 2, 5, dtype=torch.double)]
    for loss in (maps.kl, maps.probability_mse, maps.mse):

        def of_rows(own, target, loss=loss):
            return loss(maps.scores(own[0], own[0]), maps.scores(target[0], target[0]))

        own = torch.randn(7, 2, 3, dtype=torch.double, requires_grad=True)
        assert torch.autograd.gradcheck(
            lambda own, of_rows=of_rows: 3 * maps.mean_over_tokens(of_rows, [own], teacher, runs), (own,)
        )


# -- attention maps


@pytest.mark.parametrize("heads", [3, 4])
@pytest.mark.parametrize("of", ["scores", "probabilities"])
def test_attention_maps(of, heads):
    """Probabilities are those that transformers' own attention gives; scores are recomputed from queries and keys."""
    (student, teacher), batch = models(hidden_size=24, num_attention_heads=heads), batch_of()
    term = built(AttentionMaps("uniform_last", of), student, teacher)
    found = loss_of(term, student, teacher, batch)
    total = 0.0
    pairs = [(1, 1), (1, 3), (2, 3), (2, 4)]
    for own, target in pairs_of_rows(student, teacher, batch):
        for i, j in pairs:
            if of == "probabilities":
                one, other = own["attention", i], target["attention", j]
            else:
                one = torch.stack(scores(own["q", i], own["k", i], heads))
                other = torch.stack(scores(target["q", j], target["k", j], 4))
            if heads != 4:
                one, other = one.mean(0, keepdim=True), other.mean(0, keepdim=True)
            total += (one - other).square().mean() * one.shape[-1] / len(pairs)
    total = total / sum(LENGTHS)
    assert found.value.item() == pytest.approx(total.item(), rel=1e-4) and found.count == sum(LENGTHS)
    expected = gradients(total, student)
    for name, value in gradients(found.value, student).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-6, msg=name)


def test_the_maps_of_all_pairs_of_layers_are_within_the_limit(monkeypatch):
    (student, teacher), batch = models(), batch_of((8, 8, 8, 8))
    made = []
    square = maps.mse
    monkeypatch.setattr(maps, "mse", lambda one, other: made.append(one.numel()) or square(one, other))
    monkeypatch.setitem(maps.LARGEST, "cpu", 4 * 4 * 2 * 8**2)  # 4 pairs, 4 heads, 2 rows
    loss_of(built(AttentionMaps("uniform_last"), student, teacher), student, teacher, batch)
    assert made == [2 * 8**2] * 8  # of 2 rows, averaged over heads: 4 pairs, twice


@pytest.mark.parametrize("family", ["modernbert", "roberta"])
def test_attention_maps_of_other_families(family):
    """Compares attention maps, of layers with a window too, on padded rows that are longer than the window."""
    batch = families.batch_of(17, 3, 17)
    config = families.config_of(family)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    student, teacher = (AutoModel.from_config(copy.deepcopy(config)).eval() for _ in range(2))
    for parameter in (*student.parameters(), *teacher.parameters()):
        parameter.data *= 5
    term = built(AttentionMaps("last", "probabilities"), student, teacher)
    total = 0.0
    for tokens in rows_of(batch):
        attentions = (model(tokens, output_attentions=True).attentions for model in (student, teacher))
        for one, other in zip(*attentions, strict=True):
            total += (one - other).square().mean().item() * tokens.shape[1] / config.num_hidden_layers
    found = loss_of(term, student, teacher, batch).value.item()
    assert found == pytest.approx(total / 37, rel=1e-3) and found > 1e-6


def test_attention_maps_of_heads_that_share_their_keys():
    config, batch = families.config_of("eurobert"), batch_of((5,))
    config.num_key_value_heads = 2
    term = AttentionMaps("last_1")
    term.build(config, config)
    student, teacher = ({f: torch.randn(5, f.width(config)) for f in term.student} for _ in range(2))
    query, key = sorted(term.student, key=lambda feature: feature.kind != Kind.QUERY)
    total = 0.0
    for head in range(4):
        q, k = slice(8 * head, 8 * head + 8), slice(8 * (head // 2), 8 * (head // 2) + 8)
        one, other = (each[query][:, q] @ each[key][:, k].T / 8**0.5 for each in (student, teacher))
        total += (one - other).square().mean() / 4
    assert term(student, teacher, batch).value.item() == pytest.approx(total.item(), rel=1e-5)


def test_attention_maps_with_biases_are_refused():
    for family in ("mpnet", "deberta-v2", "deberta"):
        config = families.config_of(family)
        with pytest.raises(ConfigError, match=f"^objective: attention maps of a {family} are not of queries and keys"):
            AttentionMaps().build(config, config)
        Relations(heads=4).build(config, config)


# -- hidden states


@pytest.mark.parametrize("tokens", ["all", "first"])
@pytest.mark.parametrize("loss", ["mse", "kl", "cosine"])
@pytest.mark.parametrize("kind", ["mapped", "last", "embeddings"])
def test_states(kind, loss, tokens):
    (student, teacher), batch = models(), batch_of()
    terms = {"mapped": partial(HiddenStates, "skip"), "last": LastHiddenState, "embeddings": Embeddings}
    pairs = {"mapped": [(1, 2), (2, 4)], "last": [(2, 4)], "embeddings": [(0, 0)]}[kind]
    term = built(terms[kind](loss=loss, tokens=tokens), student, teacher)
    weights = [projection.weight.detach().double().numpy() for projection in term.projections]
    found = []
    for own, target in pairs_of_rows(student, teacher, batch):
        for (i, j), weight in zip(pairs, weights, strict=True):
            states = own["states", i].detach().double().numpy() @ weight.T, target["states", j].double().numpy()
            for one, other in list(zip(*states, strict=True))[: 1 if tokens == "first" else None]:
                if loss == "mse":
                    found.append(np.mean((one - other) ** 2))
                elif loss == "kl":
                    found.append(softmax(other) @ (log_softmax(other) - log_softmax(one)))
                else:
                    found.append(1 - one @ other / np.linalg.norm(one) / np.linalg.norm(other))
    mean = loss_of(term, student, teacher, batch)
    assert mean.value.item() == pytest.approx(np.mean(found), rel=1e-4)
    assert mean.count == (len(LENGTHS) if tokens == "first" else sum(LENGTHS))


def test_variances_normalize_squared_errors_alone():
    student, teacher = models()
    assert built(Embeddings(normalize="variance"), student, teacher).normalized_by
    assert not built(Embeddings("cosine", normalize="variance"), student, teacher).normalized_by


# -- predictions


@pytest.mark.parametrize("of", ["rows", "masked_tokens"])
@pytest.mark.parametrize("temperature", [None, 1.0, 3.0])
def test_predictions(of, temperature):
    """Soft targets at a temperature, or half the squared error."""
    kind, masked = (BertForSequenceClassification, ()) if of == "rows" else (BertForMaskedLM, MASKED)
    (student, teacher), batch = models(kind), batch_of(masked=masked)
    term = built(SoftTargets(temperature, of) if temperature else Logits(of), student, teacher)
    found = []
    for row, (own, target) in enumerate(pairs_of_rows(student, teacher, batch)):
        for place in [0] if of == "rows" else [place for where, place in masked if where == row]:
            one, other = (each["logits", 0][0].detach().double().numpy() for each in (own, target))
            one, other = (one, other) if of == "rows" else (one[place], other[place])
            if temperature:
                p, q = log_softmax(other / temperature), log_softmax(one / temperature)
                found.append(temperature**2 * np.exp(p) @ (p - q))
            else:
                found.append(0.5 * np.linalg.norm(one - other) ** 2)
    mean = loss_of(term, student, teacher, batch)
    assert mean.value.item() == pytest.approx(np.mean(found), rel=1e-4) and mean.count == len(found) > 3


@pytest.mark.parametrize("term", [SoftTargets(of="masked_tokens"), Logits("masked_tokens"), MaskedTokens()])
def test_a_batch_without_masked_tokens_changes_nothing(term):
    (student, teacher), batch = models(BertForMaskedLM), batch_of()
    batch["labels"] = torch.full_like(batch["input_ids"], -100)
    loss = loss_of(built(term, student, teacher), student, teacher, batch)
    assert loss.value == 0 and loss.count == 0
    assert not any(value.any() for value in gradients(loss.value, student).values())


# -- all of them


TERMS = {
    "relations": (Relations(heads=4), BertModel),
    "mse of relations": (Relations(loss="mse", heads="teacher", layer=-1), BertModel),
    "attention": (AttentionMaps(), BertModel),
    "probabilities": (AttentionMaps(of="probabilities"), BertModel),
    "hidden states": (HiddenStates(), BertModel),
    "cosine": (HiddenStates(loss="cosine"), BertModel),
    "embeddings": (Embeddings(), BertModel),
    "first tokens": (LastHiddenState("kl"), BertModel),
    "soft targets": (SoftTargets(), BertForSequenceClassification),
    "soft targets of masked tokens": (SoftTargets(of="masked_tokens"), BertForMaskedLM),
    "masked tokens": (MaskedTokens(), BertForMaskedLM),
}


@pytest.mark.parametrize("name", TERMS)
def test_means_of_parts_of_a_batch_are_the_mean_of_all(name):
    """Parts of a batch, as several devices have them, give the whole batch's loss when weighed by their counts."""
    term, kind = TERMS[name]
    (student, teacher), batch = models(kind), batch_of(masked=MASKED)
    term = built(term, student, teacher)
    whole = loss_of(term, student, teacher, BatchEncoding(dict(batch)))
    parts = [BatchEncoding({key: values[rows] for key, values in batch.items()}) for rows in (slice(2), slice(2, 6))]
    means = [loss_of(term, student, teacher, part) for part in parts]
    count = sum(mean.count for mean in means)
    assert count == whole.count
    assert (sum(mean.total for mean in means) / count).item() == pytest.approx(whole.value.item(), rel=1e-5)


@pytest.mark.parametrize("name", TERMS)
def test_bf16_is_within_four_percent(name):
    """The tolerance of a loss in bf16, relative to fp32: the models run in bf16, with 8 bits; the maps are in fp32."""
    term, kind = TERMS[name]
    (student, teacher), batch = models(kind), batch_of(masked=MASKED)
    term = built(term, student, teacher)
    expected = loss_of(term, student, teacher, batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss_of(term, student, teacher, batch)
    assert found.value.dtype == torch.float32 and found.value != expected.value
    assert found.value.item() == pytest.approx(expected.value.item(), rel=0.04)
    gradient = gradients(found.value, student)
    assert gradient and all(value.isfinite().all() for value in gradient.values())


def test_functions_of_losses_have_closed_forms():
    one, other = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    assert losses.states.cosine(one, other).item() == pytest.approx(0.5)  # a right angle, and none
    even = torch.zeros(1, 1, 2, 2)
    skewed = torch.tensor([[[[0.0, np.log(3)], [0.0, 0.0]]]], dtype=torch.float32)  # 1/4 and 3/4
    assert maps.kl(even, skewed).item() == pytest.approx(
        np.log(2) + 0.25 * np.log(0.25) + 0.75 * np.log(0.75), rel=1e-5
    )
    assert maps.probability_mse(even, skewed).item() == pytest.approx(0.25**2)
    assert functional.mse_loss(even, skewed).item() * 2 == pytest.approx(maps.mse(even, skewed).item())

"""First weights made of the teacher's embeddings and layers, against closed forms and transformers' own."""

import json
import subprocess
import sys
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from sklearn.linear_model import Ridge
from test_seams_families import CONF, WORDS, trained
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    AlbertConfig,
    BertConfig,
    BertModel,
    CamembertConfig,
    DataCollatorWithPadding,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from kdnas.base.errors import ConfigError
from kdnas.base.identity import COMPARED, first_difference, identity
from kdnas.base.shared import forget
from kdnas.datamodules.flat import PadCollator
from kdnas.distillation import terms
from kdnas.distillation.mapping import last, uniform, uniform_last
from kdnas.distillation.objective import Stage, make_objective
from kdnas.distillation.terms import HiddenStates, LastHiddenState, Relations
from kdnas.models.architecture import Architecture
from kdnas.models.building import new_encoder
from kdnas.models.initialisation import KNOWN, MatchedRelations, TeacherAndText, TeacherEmbeddings, TeacherLayers
from kdnas.models.initialisation.embeddings import Embeddings
from kdnas.models.initialisation.fitting import RIDGE, LeastSquares, fit_norm, principal_directions
from kdnas.models.initialisation.heads import head_maps, relation_map
from kdnas.models.initialisation.sample import Taught
from kdnas.models.initialisation.teacher import leading_basis
from kdnas.models.resizing import StudentFamily, student_config
from kdnas.modules.distiller import StudentDistiller

ROOT = Path(__file__).parent.parent
BEFORE = 1
"""The epochs after which a training is stopped."""
OWN = Architecture(4, 4, 16, 32, "gelu")
EMBEDDINGS = TeacherEmbeddings()
OTHER_HEADS = Architecture(2, 2, 12, 20, "gelu")
OTHER = Architecture(2, 3, 12, 20, "relu")
SIZES = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 32}
COMMON = {"vocab_size": 40, "max_position_embeddings": 40, "pad_token_id": 1, "initializer_range": 0.3}
TEACHERS = {
    "bert": BertConfig(**SIZES, **COMMON),
    "roberta": RobertaConfig(**SIZES, **COMMON),
    "xlm-roberta": XLMRobertaConfig(**SIZES, **COMMON),
    "camembert": CamembertConfig(**SIZES, **COMMON),
    "electra": ElectraConfig(**SIZES, **COMMON, embedding_size=8),
    "electra-wide": ElectraConfig(**SIZES, **COMMON, embedding_size=16),
    "mpnet": MPNetConfig(**SIZES, **COMMON),
    "distilbert": DistilBertConfig(dim=16, n_layers=4, n_heads=4, hidden_dim=32, **COMMON),
}


class Rows:
    """Random rows of 3 to 12 tokens."""

    def __init__(self, vocabulary: int = 40, count: int = 40) -> None:
        generator = torch.Generator().manual_seed(0)
        lengths = torch.randint(3, 13, (count,), generator=generator).tolist()
        self.rows = [{"input_ids": torch.randint(2, vocabulary, (n,), generator=generator)} for n in sorted(lengths)]
        self.digest = f"{vocabulary} {count}"

    def first(self, tokens):
        return [PadCollator(1)(self.rows[i : i + 8]) for i in range(0, len(self.rows), 8)]


def random_teacher(config):
    teacher = new_encoder(config, seed=1).eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in teacher.named_parameters():
        if "norm" in name.lower():
            nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.2, generator=generator)
        elif name.endswith("bias"):
            nn.init.normal_(parameter, std=0.2, generator=generator)
    return teacher


def begun(source, teacher, architecture, seed=0, text=None, relations=None):
    """A student of the teacher, begun by a source."""
    forget(KNOWN)
    student = new_encoder(student_config(teacher.config, architecture), seed=seed)
    source.check(student.config, teacher.config)
    source(student, TeacherAndText(str(id(teacher)), lambda: teacher, text or Rows(), relations))
    return student.eval()


@torch.no_grad()
def states_of(model, batches):
    """All hidden states of real tokens, by layer, from transformers' own forward pass."""
    found = []
    for batch in batches:
        own = {name: batch[name] for name in ("input_ids", "attention_mask")}
        found.append([states[batch["attention_mask"].bool()] for states in model(**own, output_hidden_states=True)[1]])
    return [torch.cat(layer) for layer in zip(*found, strict=True)]


# -- closed forms


def test_principal_directions_are_numpys_singular_vectors_whose_largest_entry_is_positive():
    table = np.random.default_rng(0).normal(size=(50, 6)) * [1, 5, 2, 9, 3, 7]
    found = principal_directions(torch.tensor(table.T @ table).float(), 4).numpy()
    expected = np.linalg.svd(table, full_matrices=False)[2][:4].T
    np.testing.assert_allclose(np.abs(found.T @ expected), np.eye(4), atol=1e-5)
    assert all(column[np.abs(column).argmax()] > 0 for column in found.T)


@pytest.mark.parametrize("biased", [True, False])
def test_least_squares_are_numpys(biased):
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(60, 5)) + 2, rng.normal(size=(60, 3))
    weight, bias = torch.tensor(rng.normal(size=(3, 5))), torch.zeros(3, dtype=torch.double)
    LeastSquares(torch.tensor(inputs), biased, ridge=0).fit(weight, bias if biased else None, torch.tensor(targets))
    columns = np.hstack([inputs, np.ones((60, 1))]) if biased else inputs
    expected = np.linalg.lstsq(columns, targets, rcond=None)[0].T
    np.testing.assert_allclose(weight, expected[:, :5], atol=1e-9)
    if biased:
        np.testing.assert_allclose(bias, expected[:, 5], atol=1e-9)


def test_where_the_inputs_say_nothing_the_weights_before_remain():
    inputs = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    inputs[:, 3] = 0  # in none of the rows
    weight, bias = torch.full((2, 4), 7.0), torch.zeros(2)
    LeastSquares(inputs, ridge=1e-3).fit(weight, bias, inputs[:, :2])
    torch.testing.assert_close(weight[:, 3], torch.full((2,), 7.0))
    torch.testing.assert_close(weight[:, :3], torch.eye(3)[:2], atol=0.05, rtol=0)


def test_a_layer_norm_is_fitted_feature_by_feature():
    generator = torch.Generator().manual_seed(0)
    inputs, norm, fitted = torch.randn(50, 6, generator=generator), nn.LayerNorm(6), nn.LayerNorm(6)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(6, generator=generator))
        norm.bias.copy_(torch.randn(6, generator=generator))
        fit_norm(fitted, inputs * 3, norm(inputs))  # the scale of its inputs does not matter to a layer norm
    torch.testing.assert_close(fitted(inputs), norm(inputs), atol=1e-3, rtol=1e-3)


def test_a_smaller_head_has_the_best_scores_of_its_rank_and_the_best_outputs():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(40, 6, generator=generator) for _ in range(3))
    output = torch.randn(9, 6, generator=generator)
    maps = head_maps(query, key, value, output, 2)
    scores = query @ key.T / 6**0.5
    found = (query @ maps.query) @ (key @ maps.key).T / 2**0.5
    spectrum = torch.linalg.svdvals(scores.double())  # Eckart and Young: the rest of the spectrum is the least error
    torch.testing.assert_close((scores - found).double().norm(), spectrum[2:].norm(), atol=1e-4, rtol=1e-4)
    outputs = value @ output.T
    found = (value @ maps.value) @ (output @ maps.back).T
    spectrum = torch.linalg.svdvals(outputs.double())
    torch.testing.assert_close((outputs - found).double().norm(), spectrum[2:].norm(), atol=1e-4, rtol=1e-4)


def test_a_larger_head_has_the_teachers_scores():
    query, key, value = torch.randn(3, 10, 4, generator=torch.Generator().manual_seed(0)).unbind()
    maps = head_maps(query, key, value, torch.eye(4), 9)
    torch.testing.assert_close((query @ maps.query) @ (key @ maps.key).T / 3, query @ key.T / 2)
    assert torch.equal(value @ maps.value @ maps.back.T, value)


def test_relations_of_a_smaller_size_are_the_best_of_one_rotation():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(40, 12, generator=generator) * 3 ** torch.arange(12.0).fmod(4) for _ in range(3))
    to = relation_map([query, key, value], 3, 2)
    for head in range(3):
        own, block = slice(2 * head, 2 * head + 2), slice(4 * head, 4 * head + 4)
        assert not to[:, own][torch.arange(12) // 4 != head].any()  # a relation head is made of one relation head
        parts = np.vstack([each[:, block] / each[:, block].square().mean().sqrt() for each in (query, key, value)])
        leading = np.linalg.svd(parts, full_matrices=False)[2][:2].T
        kept = query[:, block].numpy() @ leading
        found = query @ to[:, own]
        np.testing.assert_allclose(found @ found.T / 2**0.5, kept @ kept.T / 4**0.5, atol=0.05, rtol=1e-3)
    assert torch.equal(relation_map([query], 3, 4), torch.eye(12))


@torch.no_grad()
def relation_loss(objective, teacher, student, layers):
    """The KL of attention relations, by hand: `layers` are (student's, teacher's, heads)."""
    own, target, heads = layers
    total, count = 0.0, 0
    for row in Rows().rows:
        scores = []
        for model, layer in ((student, own), (teacher, target)):
            states = model(row["input_ids"][None], output_hidden_states=True)[1][layer - 1][0]
            attention = model.encoder.layer[layer - 1].attention.self
            for part in (attention.query, attention.key, attention.value):
                vectors = part(states).unflatten(1, (heads, -1)).transpose(0, 1)
                scores.append((vectors @ vectors.mT / vectors.shape[-1] ** 0.5).log_softmax(-1))
        for mine, theirs in zip(scores[:3], scores[3:], strict=True):
            total += float(objective(theirs, mine).sum()) / heads
        count += len(row["input_ids"])
    return total / count


KL = lambda theirs, mine: theirs.exp() * (theirs - mine)  # noqa: E731
MSE = lambda theirs, mine: (theirs.exp() - mine.exp()).square() / mine.shape[-1]  # noqa: E731


@pytest.mark.parametrize(("loss", "target"), [(KL, 3), (MSE, 4)])
def test_a_student_begins_nearer_to_relations_than_a_random_one(loss, target):
    teacher = random_teacher(TEACHERS["bert"])
    for architecture in (Architecture(2, 4, 8, 20, "gelu"), Architecture(2, 2, 12, 32, "gelu")):
        matched = MatchedRelations(2, target, 4)
        student = begun(TeacherLayers(uniform_last), teacher, architecture, relations=matched)
        random = new_encoder(student.config, seed=0).eval()
        losses = [relation_loss(loss, teacher, each, (2, target, 4)) for each in (student, random)]
        assert losses[0] < 0.8 * losses[1]
    whole = begun(TeacherLayers(uniform_last), teacher, OWN, relations=MatchedRelations(4, 4, 4))
    assert relation_loss(loss, teacher, whole, (4, 4, 4)) < 1e-4


# -- the teacher's embeddings


def test_embeddings_are_the_teachers_on_the_principal_directions_of_its_table():
    teacher = random_teacher(TEACHERS["bert"])
    student = begun(TeacherEmbeddings(), teacher, OTHER)
    table = teacher.embeddings.word_embeddings.weight.detach().double().numpy()
    values, vectors = np.linalg.eigh(table.T @ table)
    basis = vectors[:, ::-1][:, :12]
    basis = basis * np.sign(basis[np.abs(basis).argmax(0), range(12)])
    for name in ("word", "position", "token_type"):
        own, theirs = (m.embeddings.get_submodule(f"{name}_embeddings").weight.detach() for m in (student, teacher))
        expected = theirs.double().numpy() @ basis
        if name == "word":
            assert not own[1].any()  # the padding token's
            expected[1] = 0
        np.testing.assert_allclose(own, expected, atol=1e-5)
    kept = (table @ basis) ** 2
    assert kept.sum() / (table**2).sum() == pytest.approx(values[::-1][:12].sum() / values.sum())


def test_a_student_as_wide_as_its_teacher_has_its_embeddings_as_they_are():
    teacher = random_teacher(TEACHERS["roberta"])
    student = begun(TeacherEmbeddings(), teacher, Architecture(1, 2, 16, 8, "relu"))
    batches = Rows().first(0)
    torch.testing.assert_close(states_of(student, batches)[0], states_of(teacher, batches)[0])
    fresh = new_encoder(student.config, seed=0)
    assert torch.equal(student.encoder.layer[0].output.dense.weight, fresh.encoder.layer[0].output.dense.weight)


def test_embeddings_of_a_size_of_their_own_are_copied_and_their_projection_is_cut():
    teacher = random_teacher(TEACHERS["electra"])
    student = begun(TeacherEmbeddings(), teacher, OTHER)
    own, theirs = (model.embeddings.word_embeddings.weight for model in (student, teacher))
    assert torch.equal(own[2:], theirs[2:])
    states, expected = (states_of(model, Rows().first(0))[0].double() for model in (student, teacher))
    states, expected = (each - each.mean(0) for each in (states, expected))
    # 12 of the teacher's 16 axes are enough for what comes from embeddings of size 8, up to a rotation.
    torch.testing.assert_close(states @ states.T, expected @ expected.T, atol=1e-3, rtol=1e-3)


NARROW = ElectraConfig(**SIZES, **COMMON, embedding_size=12)


@pytest.mark.parametrize("source", [EMBEDDINGS, TeacherLayers(uniform_last)])
@pytest.mark.parametrize("width", [12, 16])
@pytest.mark.parametrize("family", ["electra", "bert"])
def test_a_student_without_its_teachers_projection_has_what_comes_after_it(source, width, family):
    teacher = random_teacher(NARROW)
    architecture = Architecture(2, 2, width, 20, "gelu")
    config = student_config(teacher.config, architecture, StudentFamily(family, max_length=30))
    student = new_encoder(config, seed=0).eval()
    forget(KNOWN)
    known = TeacherAndText("narrow", lambda: teacher, Rows())
    source(student, known)
    directions = Embeddings.of(teacher).directions() if source is EMBEDDINGS else known.taught().directions
    output, expected = (states_of(model, Rows().first(0))[0] for model in (student, teacher))
    expected = expected @ leading_basis(directions, width)
    error = float((output - expected).square().sum() / (expected - expected.mean(0)).square().sum())
    assert error < 0.5


def test_directions_that_the_teacher_has_nothing_in_stay_random():
    teacher = random_teacher(TEACHERS["electra"])  # embeddings of size 8
    config = student_config(teacher.config, Architecture(1, 2, 12, 20, "gelu"), StudentFamily("bert", max_length=30))
    student, fresh = new_encoder(config, seed=0), new_encoder(config, seed=0)
    EMBEDDINGS(student, TeacherAndText("null", lambda: teacher, Rows()))
    own, random = (model.embeddings.word_embeddings.weight for model in (student, fresh))
    assert torch.equal(own[2:, 8:], random[2:, 8:]) and not (own[2:, :8] == random[2:, :8]).any()


# -- the teacher's layers


@pytest.mark.parametrize("family", TEACHERS)
def test_a_student_of_the_teachers_own_architecture_has_its_hidden_states(family):
    teacher = random_teacher(TEACHERS[family])
    student = begun(TeacherLayers(uniform_last), teacher, OWN)
    rows = Rows(count=12)
    for own, theirs in zip(states_of(student, rows.first(0)), states_of(teacher, rows.first(0)), strict=True):
        torch.testing.assert_close(own, theirs, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("family", TEACHERS)
def test_a_student_that_differs_in_all_five_values_begins_nearer_to_its_teacher_than_a_random_one(family):
    teacher = random_teacher(TEACHERS[family])
    batches = Rows().first(0)
    target = states_of(teacher, batches)[-1].double()

    def explained(student):
        states = states_of(student, batches)[-1].double()
        columns = torch.cat([states, torch.ones(len(states), 1)], dim=1)
        rest = target - columns @ torch.linalg.lstsq(columns, target).solution
        return 1 - float(rest.square().sum() / (target - target.mean(0)).square().sum())

    for architecture in (OTHER, Architecture(3, 1, 14, 50, "silu"), Architecture(4, 8, 16, 32, "gelu")):
        student = begun(TeacherLayers(uniform_last), teacher, architecture)
        assert student.training is False and all(p.isfinite().all() for p in student.parameters())
        random = new_encoder(student.config, seed=0).eval()
        assert explained(student) > explained(random) + 0.1


def test_a_student_begins_as_the_last_layers_that_it_is_mapped_to():
    assert TeacherLayers(uniform_last).numbers(3, 6) == [4, 5, 6]
    assert TeacherLayers(uniform).numbers(3, 6) == [1, 3, 5]
    assert TeacherLayers(last).numbers(2, 5) == [4, 5]
    assert TeacherLayers(uniform).numbers(3, 6, MatchedRelations(3, 5, 1)) == [3, 4, 5]
    assert TeacherLayers(uniform).numbers(6, 6, MatchedRelations(6, 5, 1)) == [1, 1, 2, 3, 4, 5]
    teacher = random_teacher(TEACHERS["bert"])
    student = begun(TeacherLayers(uniform), teacher, Architecture(1, 4, 16, 32, "gelu"))
    states, expected = (states_of(model, Rows().first(0))[1] for model in (student, teacher))
    torch.testing.assert_close(states, expected, atol=2e-3, rtol=2e-3)  # its only layer is the teacher's first


def test_a_bert_can_begin_as_its_roberta_teacher():
    teacher = random_teacher(TEACHERS["roberta"])
    student = new_encoder(BertConfig(**SIZES, **COMMON), seed=0)
    TeacherLayers(uniform_last)(student, TeacherAndText("roberta", lambda: teacher, Rows()))
    batches = Rows().first(0)
    for own, theirs in zip(states_of(student.eval(), batches), states_of(teacher, batches), strict=True):
        torch.testing.assert_close(own, theirs, atol=2e-3, rtol=2e-3)


UNLIKE_BERT = {
    "albert": AlbertConfig(**SIZES, **COMMON, embedding_size=8),
    "deberta-v2": DebertaV2Config(**SIZES, **COMMON, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "deberta-v2-narrow": DebertaV2Config(**SIZES, **COMMON, relative_attention=True, embedding_size=8),
    "modernbert": ModernBertConfig(**SIZES, **COMMON, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3),
}


@pytest.mark.parametrize("family", UNLIKE_BERT)
def test_other_families_begin_with_embeddings_alone(family):
    teacher = random_teacher(UNLIKE_BERT[family])
    same_width = begun(TeacherEmbeddings(), teacher, Architecture(1, 2, 16, 8, "gelu"))
    states, expected = (states_of(model, Rows().first(0))[0] for model in (same_width, teacher))
    torch.testing.assert_close(states, expected)
    student = begun(TeacherEmbeddings(), teacher, Architecture(1, 2, 12, 8, "gelu"))
    assert all(parameter.isfinite().all() for parameter in student.parameters())
    words = student.get_input_embeddings().weight
    assert not torch.equal(words, new_encoder(student.config, seed=0).get_input_embeddings().weight)
    with pytest.raises(
        ConfigError,
        match=f"^student.init=teacher: the layers of a {teacher.config.model_type} model are not as BERT's, .*"
        "; must be random or embeddings, as student.init=embeddings$",
    ):
        begun(TeacherLayers(uniform_last), teacher, OTHER)


def test_a_student_of_more_layers_than_its_teacher_is_refused():
    with pytest.raises(ConfigError, match="^student.init=teacher: a student of 5 layers has more than its teacher's 4"):
        begun(TeacherLayers(uniform_last), random_teacher(TEACHERS["bert"]), Architecture(5, 4, 16, 32, "gelu"))


@torch.no_grad()
def test_the_importance_of_heads_and_neurons_is_the_mean_square_of_what_they_add():
    teacher, heads, neurons = random_teacher(TEACHERS["bert"]), [], []
    taught = Taught.of(teacher, Rows().first(0))
    layer = teacher.encoder.layer[1]
    matrices = (layer.attention.output.dense, heads), (layer.output.dense, neurons)
    hooks = [
        matrix.register_forward_hook(lambda _, inputs, __, to=to: to.append(inputs[0][0])) for matrix, to in matrices
    ]
    for row in Rows().rows:
        teacher(row["input_ids"][None])
    for hook in hooks:
        hook.remove()
    for (matrix, inputs), size, found in zip(matrices, (4, 1), (taught.heads[1], taught.neurons[1]), strict=True):
        one = torch.cat(inputs)
        parts = zip(one.split(size, 1), matrix.weight.split(size, 1), strict=True)
        mean = "mean" if size == 4 else "sum"  # over the hidden size
        expected = [getattr((values @ weight.T).square().mean(0), mean)() for values, weight in parts]
        torch.testing.assert_close(found, torch.stack(expected), atol=1e-6, rtol=1e-4)
    assert not any(module._forward_pre_hooks for module in teacher.modules())


# -- a run


def run(teacher, data, folder, *words):
    """Distils students without moving their weights, and returns the folder of the run."""
    trained(teacher, data, folder, "module.learning_rate=1e-30", *words)
    return folder / "out"


def weights(run, student=0):
    state = torch.load(run / "best.ckpt", weights_only=True)["state_dict"]
    prefix = f"students.{student}."
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def same(one, other):
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def alone(teacher, text_dataset, tmp_path_factory):
    return run(teacher, text_dataset, tmp_path_factory.mktemp("alone"), "student/init=teacher")


def test_a_gangs_students_begin_as_each_would_alone(teacher, text_dataset, tmp_path, alone):
    small = "{num_hidden_layers:1,num_attention_heads:2,hidden_size:8,intermediate_size:12,hidden_act:relu}"
    wide = "{num_hidden_layers:2,num_attention_heads:3,hidden_size:12,intermediate_size:40,hidden_act:gelu}"
    gang = run(teacher, text_dataset, tmp_path, "student/init=teacher", f"architectures=[{wide},{small}]")
    same(weights(gang, 1), weights(alone))


@pytest.mark.long
def test_another_process_gives_the_same_weights(teacher, text_dataset, tmp_path, alone):
    words = [*WORDS, "student.init=teacher", f"teacher.path={teacher}", f"data.path={text_dataset}"]
    words += ["module.learning_rate=1e-30", f"paths.output={tmp_path}/out", f"paths.export={tmp_path}/out/model"]
    subprocess.run([sys.executable, ROOT / "train.py", *words], check=True, cwd=tmp_path, capture_output=True)
    same(weights(tmp_path / "out"), weights(alone))
    assert "| initial weights | the teacher's layers |" in (tmp_path / "out/model/README.md").read_text()


@pytest.mark.parametrize("alone", [True, False])
def test_terms_are_fitted_in_one_pass_for_all_hidden_states(teacher, alone):
    parts = {"relations": Relations(heads=2)}
    parts |= {} if alone else {"states": HiddenStates("last"), "embeddings": terms.Embeddings(), "last": HiddenStates()}
    module = StudentDistiller(str(teacher), [OTHER_HEADS], make_objective(s=Stage(parts)), init=EMBEDDINGS)
    student, rows, calls = module.trainees[0], Rows(len(module.tokenizer), count=8), []
    hook = student.model.register_forward_hook(lambda *_: calls.append(1))
    module.fit_terms(rows, torch.device("cpu"))
    hook.remove()
    assert len(calls) == (0 if alone else 1)
    if not alone:
        batch = rows.first(0)[0]
        own = {name: batch[name] for name in ("input_ids", "attention_mask")}
        real = batch["attention_mask"].bool()
        mine, target = (
            model.eval()(**own, output_hidden_states=True).hidden_states[0][real].detach().double().numpy()
            for model in (student.model, BertModel.from_pretrained(teacher))
        )
        found = student.terms["embeddings"].projections[0].weight.detach().numpy().T
        best = np.linalg.lstsq(mine, target, rcond=None)[0]
        assert np.square(mine @ found - target).sum() < 1.1 * np.square(mine @ best - target).sum() + 1e-3


@torch.no_grad()
def test_a_projection_of_few_rows_has_nothing_where_they_say_nothing():
    configs = [BertConfig(**SIZES | {"hidden_size": width}, **COMMON) for width in (12, 16)]
    term = LastHiddenState(tokens="first")
    term.build(*configs)
    rows = [torch.randn(5, width, generator=torch.Generator().manual_seed(width)) for width in (12, 16)]
    term.fit(*({feature: each} for (feature,), each in zip((term.student, term.teacher), rows, strict=True)))
    own, target = (each.double().numpy() for each in rows)
    alpha = RIDGE * np.square(own).sum(0).mean()
    expected = Ridge(alpha=alpha, fit_intercept=False).fit(own, target).coef_
    np.testing.assert_allclose(term.projections[0].weight, expected, atol=1e-4)


def test_a_training_without_the_first_weights_that_it_is_to_have_is_refused(teacher):
    module = StudentDistiller(str(teacher), [OTHER], make_objective(s=Stage({"s": HiddenStates()})), init=EMBEDDINGS)
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False)
    rows = [module.tokenizer("all dogs run")] * 2
    loader = DataLoader(rows, batch_size=2, collate_fn=DataCollatorWithPadding(module.tokenizer))
    with pytest.raises(ConfigError, match=r"^student.init: the teacher's embeddings need text; must call `initialise`"):
        trainer.fit(module, loader, loader)
    module.initialise(Rows())
    trainer.fit(module, loader, loader)


def test_relations_begin_as_the_layer_that_they_match(teacher):
    objective = make_objective(relations=Stage({"relations": Relations(heads=2)}))
    module = StudentDistiller(str(teacher), [OTHER_HEADS], objective, init=TeacherLayers(uniform_last))
    layers = module.teacher_config.num_hidden_layers
    assert module.trainees[0].relations == MatchedRelations(2, layers - 1, 2)
    other = new_encoder(module.trainees[0].model.config, seed=0)
    forget(KNOWN)
    loaded = BertModel.from_pretrained(teacher, add_pooling_layer=False).eval()
    known = TeacherAndText("", lambda: loaded, Rows(len(module.tokenizer)), module.trainees[0].relations)
    TeacherLayers(uniform_last)(other, known)
    forget(KNOWN)
    module.initialise(known.text)
    own = module.trainees[0].model.base_model.state_dict()
    assert all(torch.equal(own[name], values) for name, values in other.state_dict().items())
    several = make_objective(both=Stage({"relations": Relations(heads=2), "states": HiddenStates()}))
    assert StudentDistiller(str(teacher), [OTHER_HEADS], several).trainees[0].relations is None


@pytest.mark.parametrize("init", ["embeddings", "teacher"])
def test_loss_terms_begin_with_the_best_projections(init, teacher, text_dataset, tmp_path):
    folder = run(teacher, text_dataset, tmp_path, f"student/init={init}", "objective.mapping=last_1")
    random = run(teacher, text_dataset, tmp_path / "random", "objective.mapping=last_1")
    losses = [json.loads((run / "results.json").read_text())[0]["loss"] for run in (folder, random)]
    assert losses[0] < 0.7 * losses[1]


def test_nothing_is_loaded_where_a_run_resumes(teacher, text_dataset, tmp_path, monkeypatch):
    words = ["student/init=teacher", "outputs=memory", "trainer.max_epochs=2"]
    whole = run(teacher, text_dataset, tmp_path / "whole", *words)
    calls = []

    def ending(self, *arguments):
        calls.append(1)
        if len(calls) == 1 + BEFORE:
            raise KeyboardInterrupt

    original = StudentDistiller.on_train_epoch_start
    monkeypatch.setattr(StudentDistiller, "on_train_epoch_start", lambda self: (original(self), ending(self))[0])
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(teacher, text_dataset, tmp_path / "killed", *words)
    monkeypatch.setattr(StudentDistiller, "on_train_epoch_start", original)
    monkeypatch.setattr(TeacherLayers, "__call__", lambda *_: pytest.fail("the first weights are made again"))
    resumed = run(teacher, text_dataset, tmp_path / "killed", *words)
    same(weights(resumed), weights(whole))


def test_a_search_is_continued_with_the_same_first_weights_alone(teacher, text_dataset):
    words = [*WORDS, f"teacher.path={teacher}", f"data.path={text_dataset}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfgs = [compose("search", [*words, f"student/init={name}"]) for name in ("teacher", "embeddings")]
    one, other = (identity(cfg, None, COMPARED) for cfg in cfgs)
    assert str(first_difference(one, other)).startswith("module.init.")


def test_every_experiment_of_a_paper_begins_at_random():
    for name in ("mnli", "task"):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            assert compose("search", [f"+experiment={name}"]).student.init._target_.endswith("RandomWeights")


def test_what_the_teacher_knows_is_computed_once_for_all_students():
    teacher, loads = random_teacher(TEACHERS["bert"]), []
    forget(KNOWN)
    known = TeacherAndText("once", lambda: loads.append(1) or teacher, Rows())
    weights = []
    for seed in (0, 1):
        student = new_encoder(student_config(teacher.config, OWN), seed=seed)
        TeacherLayers(uniform_last)(student, known)
        weights.append(student.encoder.layer[0].output.dense.weight)
    assert loads == [1]
    torch.testing.assert_close(*weights)  # the seed has no part in what the teacher has

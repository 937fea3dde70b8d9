"""Masked language modelling: its loss by hand, real runs, and what can be made of what they leave."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from labelled import load_classifier
from objectives import objective
from scipy.special import log_softmax
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, RobertaConfig, RobertaModel

from kdnas.app import run as runner
from kdnas.app.resuming import resumable
from kdnas.base.errors import ConfigError
from kdnas.datamodules import Masking, SyntheticNLI
from kdnas.models.architecture import Architecture
from kdnas.models.building import new_encoder
from kdnas.models.checkpoints import read, unpack
from kdnas.models.exports import export
from kdnas.models.initialisation import PretrainedWeights
from kdnas.models.loading import load_config
from kdnas.models.resizing import student_config
from kdnas.modules import StudentDistiller

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

CONF = Path(__file__).resolve().parent.parent / "conf"
SMALL = Architecture(2, 2, 16, 32, "gelu")
TEXTS = ["all big dogs are running", "no cats are sleeping quietly in the park"]


def pretrain(folder, teacher, *overrides):
    """`train.py +experiment=pretrain` on three epochs of 12 steps of the built-in task's text."""
    settings = ["+experiment=pretrain", "data=demo", "data.rows=48", "data.held_out=20", "data.batch_size=4"]
    settings += ["trainer.accelerator=cpu", "trainer.max_steps=-1", "trainer.max_epochs=3"]
    settings += ["objective.tokens.learning_rate=1e-2"]
    settings += [f"architecture.{name}={value}" for name, value in SMALL.to_dict().items()]
    settings += [f"teacher.path={teacher}", f"paths.runs={folder}", f"paths.output={folder}", "search.dir=null"]
    with initialize_config_dir(str(CONF), version_base=None):
        return runner.run(compose("train", [*settings, "trainer.precision=32-true", *overrides]))


def pretrainer(teacher, architecture=SMALL, **settings):
    """The module of such a run."""
    rate = {"learning_rate": 1e-2}
    masked_lm = objective("masked_lm", representation={"epochs": 0, **rate}, tokens={"epochs": None, **rate})
    module = StudentDistiller(teacher, [architecture], masked_lm, **settings)
    module.log = lambda *_, **__: None
    return module


@pytest.fixture(scope="module", params=["teacher", "roberta_teacher"])
def run(request, tmp_path_factory):
    """The folder of a finished run, its teacher, and its result."""
    folder, teacher = tmp_path_factory.mktemp("run"), request.getfixturevalue(request.param)
    return folder, teacher, pretrain(folder, teacher)


def by_hand(model, batches):
    """The mean loss over all masked tokens, in numpy, from the whole model's logits."""
    logits, tokens = [], []
    for batch in batches:
        masked = batch["labels"] != -100
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with torch.no_grad():
            logits.append(model(**inputs).logits.double()[masked])
        tokens.append(batch["labels"][masked])
    logits, tokens = torch.cat(logits).numpy(), torch.cat(tokens).numpy()
    assert len(tokens) > 20
    return {"loss": -log_softmax(logits, axis=1)[np.arange(len(tokens)), tokens].mean()}


def data_of(teacher, **settings):
    data = SyntheticNLI(tokenizer=AutoTokenizer.from_pretrained(teacher), masking=Masking(), **settings)
    data.setup()
    return data


# -- training


def test_the_result_is_of_all_masked_held_out_tokens(run):
    folder, teacher, result = run
    model = AutoModelForMaskedLM.from_pretrained(folder / "model").eval()
    expected = by_hand(model, data_of(teacher, rows=48, held_out=20, batch_size=3, seed=0).val_dataloader())
    # batches of another size have other masks
    assert expected["loss"] != pytest.approx(result["loss"], rel=1e-4)
    expected = by_hand(model, data_of(teacher, rows=48, held_out=20, batch_size=4, seed=0).val_dataloader())
    assert result == pytest.approx(expected, rel=1e-5)
    assert json.loads((folder / "results.json").read_text()) == [result]


@pytest.mark.parametrize("family", ["teacher", "roberta_teacher"])
def test_the_training_loss_is_the_mean_over_the_masked_tokens(family, request):
    teacher = request.getfixturevalue(family)
    module = pretrainer(teacher, dropout=0.0)
    batches = list(data_of(teacher, rows=40, held_out=4).train_dataloader())
    for batch in batches:
        expected = by_hand(module.students[0].model, [batch])["loss"]
        assert module.training_step(batch, 0).item() == pytest.approx(expected, rel=1e-5)


def test_a_batch_without_masks_changes_nothing(teacher):
    module = pretrainer(teacher)
    batch = AutoTokenizer.from_pretrained(teacher)(TEXTS, padding=True, return_tensors="pt")
    loss = module.training_step(batch | {"labels": torch.full(batch["input_ids"].shape, -100)}, 0)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in module.parameters())


def test_it_learns_more_than_which_tokens_are_frequent(teacher, tmp_path):
    overrides = ["data.rows=400", "data.held_out=100", "data.batch_size=16", "trainer.max_epochs=9"]
    result = pretrain(tmp_path, teacher, *overrides, "module.dropout=0.0")
    data = data_of(teacher, rows=400, held_out=100)
    tokens = torch.cat([batch["labels"][batch["labels"] != -100] for batch in data.val_dataloader()])
    shares = np.bincount(tokens) / len(tokens)
    entropy = -sum(share * np.log(share) for share in shares if share)  # of the best guess without a look at the text
    assert result["loss"] < 0.9 * entropy


@pytest.mark.parametrize(
    ("overrides", "again"),
    [
        ([], range(24, 36)),
        (["data/masking=whole_word", "trainer.max_steps=31"], range(24, 31)),
        (["trainer.limit_train_batches=8", "trainer.max_epochs=-1", "trainer.max_steps=31"], range(24, 31)),
        (["trainer.limit_train_batches=7", "trainer.max_epochs=5"], range(28, 35)),
    ],
)
def test_a_killed_run_ends_as_if_it_had_not_been_killed(teacher, tmp_path, monkeypatch, overrides, again):
    """With the teacher's dropout; `again` are the steps that it takes from its last checkpoint on."""

    class KilledError(Exception):
        pass

    steps, training_step = [], StudentDistiller.training_step

    def counted(module, *arguments):
        steps.append(module.global_step)
        if len(steps) == 30:  # of epochs of 12 steps, or as many as the limit
            raise KilledError
        return training_step(module, *arguments)

    whole = pretrain(tmp_path / "whole", teacher, *overrides)
    monkeypatch.setattr(StudentDistiller, "training_step", counted)
    with pytest.raises(KilledError):
        pretrain(tmp_path / "cut", teacher, *overrides)
    steps.clear()
    torch.manual_seed(12345)
    assert pretrain(tmp_path / "cut", teacher, *overrides) == whole
    assert steps == list(again)
    states = [read(tmp_path / folder / "last.ckpt") for folder in ("whole", "cut")]
    assert states[0]["global_step"] == states[1]["global_step"] == steps[-1] + 1
    one, other = (state["state_dict"] for state in states)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("end", ["trainer.max_steps=13", "trainer.max_epochs=2"])
def test_the_learning_rate_falls_over_the_steps_that_there_are(teacher, tmp_path, monkeypatch, end):
    rates, training_step = [], StudentDistiller.training_step

    def noted(module, *arguments):
        rates.append(module.trainer.optimizers[0].param_groups[0]["lr"])
        return training_step(module, *arguments)

    monkeypatch.setattr(StudentDistiller, "training_step", noted)
    pretrain(tmp_path, teacher, "trainer.limit_train_batches=7", "module.warmup=0", end)
    steps = {"trainer.max_steps=13": 13, "trainer.max_epochs=2": 14}[end]
    assert rates == pytest.approx([1e-2 * (1 - step / steps) for step in range(steps)])


def test_steps_that_end_within_an_epoch_are_judged_too(teacher, tmp_path):
    result = pretrain(tmp_path, teacher, "trainer.max_steps=5")
    assert read(tmp_path / "best.ckpt")["global_step"] == 5
    data = data_of(teacher, rows=48, held_out=20, batch_size=4)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "model").eval()
    assert result == pytest.approx(by_hand(model, data.val_dataloader()), rel=1e-5)


# -- what is left behind


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def encoder_of(model):
    return {name: value for name, value in model.base_model.state_dict().items() if not name.startswith("pooler.")}


def test_both_auto_classes_load_the_folder_with_the_checkpoint_s_weights(run):
    folder, _, _ = run
    config, weights, tokenizer = unpack(folder / "best.ckpt")
    expected = AutoModelForMaskedLM.from_config(config).eval()
    expected.load_state_dict(weights)
    masked, plain = (auto.from_pretrained(folder / "model").eval() for auto in (AutoModelForMaskedLM, AutoModel))
    batch = AutoTokenizer.from_pretrained(folder / "model")(TEXTS, padding=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == tokenizer(TEXTS, padding=True)["input_ids"]
    with torch.no_grad():
        wanted = expected(**batch, output_hidden_states=True)
        assert torch.equal(masked(**batch).logits, wanted.logits)
        states = plain(**batch, output_hidden_states=True).hidden_states
    assert len(states) == 3 and all(map(torch.equal, states, wanted.hidden_states))


def test_words_and_guesses_share_their_weights_to_the_end(run):
    folder, teacher, _ = run
    with torch.random.fork_rng():
        start = pretrainer(teacher).students[0].model
    for model in (start, AutoModelForMaskedLM.from_pretrained(folder / "model")):
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    state = read(folder / "last.ckpt")["state_dict"]
    shape = start.get_input_embeddings().weight.shape
    tables = [value for value in state.values() if value.shape == shape]
    assert len(tables) == 2 and torch.equal(*tables)
    assert not torch.equal(tables[0], start.get_input_embeddings().weight)


def test_what_was_pretrained_can_be_fine_tuned(run):
    folder, _, _ = run
    trained = encoder_of(AutoModelForMaskedLM.from_pretrained(folder / "model"))
    for source in (folder / "best.ckpt", folder / "model"):
        model, tokenizer = load_classifier(str(source), num_labels=3)
        assert same(encoder_of(model), trained)
        batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
        assert model(**batch, labels=torch.tensor([2, 0])).logits.shape == (2, 3)


# -- into an encoder


@pytest.fixture
def sources(run, tmp_path):
    """What an encoder can be taken from: each holds the weights of the finished run."""
    folder, _, _ = run
    masked = AutoModelForMaskedLM.from_pretrained(folder / "model")
    encoder = new_encoder(masked.config)
    encoder.load_state_dict(encoder_of(masked))
    classifier, tokenizer = load_classifier(str(folder / "model"), num_labels=2)
    return [
        folder / "best.ckpt",
        folder / "model",
        export(encoder, tokenizer, tmp_path / "encoder"),
        export(classifier, tokenizer, tmp_path / "classifier"),
        export(AutoModel.from_pretrained(folder / "model"), tokenizer, tmp_path / "with pooler"),
    ]


def test_an_encoder_takes_over_the_weights_of_any_kind_of_model(run, sources):
    folder, teacher, _ = run
    trained = encoder_of(AutoModelForMaskedLM.from_pretrained(folder / "model"))
    for source in sources:
        model = new_encoder(student_config(load_config(teacher), SMALL), seed=5)
        assert not same(model.state_dict(), trained)
        PretrainedWeights(str(source))(model)
        assert same(model.state_dict(), trained)


OTHERS = [
    ("num_hidden_layers", 3),
    ("num_hidden_layers", 1),
    ("num_attention_heads", 4),
    ("hidden_size", 8),
    ("intermediate_size", 64),
    ("hidden_act", "relu"),
]


@pytest.mark.parametrize(("name", "value"), OTHERS)
def test_an_encoder_of_another_architecture_is_refused(run, sources, name, value):
    _, teacher, _ = run
    theirs = SMALL.to_dict()[name]
    model = new_encoder(student_config(load_config(teacher), Architecture.of(SMALL.to_dict() | {name: value})), seed=5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for source in sources[:3]:
        with pytest.raises(ConfigError) as refusal:
            PretrainedWeights(str(source))(model)
        expected = f"student.init.source={source}: its {name} is {theirs}; must be the student's {value}"
        assert str(refusal.value) == expected
    assert same(model.state_dict(), before)


def test_an_encoder_of_another_family_or_vocabulary_is_refused(teacher):
    config = load_config(teacher)
    sizes = {name: getattr(config, name) for name in Architecture.__dataclass_fields__}
    roberta = RobertaModel(RobertaConfig(vocab_size=config.vocab_size, max_position_embeddings=128, **sizes))
    with pytest.raises(ConfigError, match="^student.init.source=.*: its model_type is bert; must be .*roberta$"):
        PretrainedWeights(teacher)(roberta)
    config.vocab_size = 50
    with pytest.raises(ConfigError, match="^student.init.source=.*: its vocab_size is .*; must be the student's 50$"):
        PretrainedWeights(teacher)(new_encoder(config))


def test_weights_that_are_not_as_their_config_says_are_refused(run, tmp_path):
    folder, teacher, _ = run
    model = new_encoder(student_config(load_config(teacher), SMALL))
    deep = new_encoder(student_config(load_config(teacher), Architecture(3, 2, 16, 32, "gelu")))
    written = export(deep, AutoTokenizer.from_pretrained(teacher), tmp_path / "model")
    config = json.loads((written / "config.json").read_text())
    (written / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    checkpoint = read(folder / "last.ckpt")
    name = next(name for name in checkpoint["state_dict"] if name.endswith("1.output.dense.weight"))
    del checkpoint["state_dict"][name]
    torch.save(checkpoint, tmp_path / "less.ckpt")
    for source, first in ((written, "encoder.layer.2."), (tmp_path / "less.ckpt", "encoder.layer.1.output.dense")):
        with pytest.raises(ConfigError, match=f"^student.init.source={source}: .*{first}"):
            PretrainedWeights(str(source))(model)


@pytest.mark.parametrize("name", ["gone", "gone.ckpt", "broken.ckpt"])
def test_an_encoder_that_is_not_there_is_refused_with_its_path(teacher, tmp_path, name):
    (tmp_path / "broken.ckpt").write_bytes(b"PK\x03\x04")
    with pytest.raises(ConfigError, match=f"^student.init.source={tmp_path / name}: "):
        PretrainedWeights(str(tmp_path / name))(new_encoder(load_config(teacher)))


# -- refusals


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.masking.probability=0"], "data.masking.probability=0: must be above 0 and below 1"),
        (["architectures=[]"], "architectures=[]: must name at least one student"),
        (["architecture.hidden_act=gellu"], "architecture.hidden_act=gellu: must be one of"),
        (["teacher.path=/no/such/teacher"], "teacher.path=/no/such/teacher: no model there"),
        (["data.masking=null"], "data.masking=null: leaves no tokens to predict"),
    ],
)
def test_bad_input_is_refused_in_one_line(teacher, tmp_path, overrides, says):
    with pytest.raises(ConfigError) as refusal:
        pretrain(tmp_path, teacher, *overrides)
    assert str(refusal.value).startswith(says) and "\n" not in str(refusal.value)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_checkpoint_of_another_architecture_is_refused(run, tmp_path):
    folder, teacher, _ = run
    other = partial(Architecture, 2, 4, 16, 32)  # the heads are in no shape
    module = pretrainer(teacher, other("gelu"))
    with pytest.raises(ConfigError, match=r"^checkpoint: holds \[2, 2, .*; this run trains \[2, 4, "):
        resumable(folder / "last.ckpt", module, data_of(teacher, rows=8, held_out=4))

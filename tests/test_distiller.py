"""The student distiller against arithmetic done by hand, and through real fits."""

import re
from functools import cache
from pathlib import Path
from threading import current_thread, main_thread

import lightning as L
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from objectives import hidden_states
from omegaconf import OmegaConf
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoTokenizer, DataCollatorWithPadding

from kdnas.app import run as runner
from kdnas.app.resuming import resumable
from kdnas.base.errors import ConfigError
from kdnas.models.architecture import Architecture
from kdnas.models.features import hidden_state
from kdnas.modules import StudentDistiller

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

CONF = Path(__file__).resolve().parent.parent / "conf"
SMALL = Architecture(2, 2, 8, 16, "gelu")
DEEP = Architecture(4, 2, 12, 24, "relu")
WIDE = Architecture(1, 4, 20, 32, "silu")
TEXTS = ["all big dogs are running", "no cats are sleeping quietly in the park", "anna is dancing"]
PAIRS = {  # (student layer, teacher layer) for 2 student and 4 teacher layers
    "last_1": [(2, 4)],
    "last": [(1, 3), (2, 4)],
    "uniform": [(1, 1), (2, 3)],
    "uniform_last": [(1, 1), (1, 3), (2, 3), (2, 4)],
}
STEPS = 10


def distiller(teacher, *architectures, mapping="uniform_last", normalize="none", **settings):
    settings = {"dropout": 0.0, "seed": 3} | settings
    return StudentDistiller(teacher, architectures or [SMALL], hidden_states(mapping, normalize), **settings)


def batch_of(teacher, texts=TEXTS):
    return AutoTokenizer.from_pretrained(teacher)(texts, padding=True, return_tensors="pt")


def layer_outputs(model, batch):
    """What each layer of an encoder gives for the real tokens, caught at the layer itself; by layer, from 1."""
    caught = []
    hooks = [
        layer.register_forward_hook(lambda _, __, out: caught.append(out[0] if isinstance(out, tuple) else out))
        for layer in model.encoder.layer
    ]
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    real = batch["attention_mask"].numpy().astype(bool)
    return {number: out.numpy()[real].astype(np.float64) for number, out in enumerate(caught, start=1)}


@cache
def plain(teacher):
    return AutoModel.from_pretrained(teacher).eval()


def loss_by_hand(student, teacher, batch, pairs, variances=None):
    """The mean over pairs of the mean squared error over real tokens and features, in numpy."""
    own = layer_outputs(student.model.eval(), batch)
    theirs = layer_outputs(plain(teacher), batch)
    weights = [projection.weight.detach().numpy().astype(np.float64) for projection in term_of(student).projections]
    terms = [
        np.mean((own[i] @ weight.T - theirs[j]) ** 2) / (variances[j] if variances else 1)
        for (i, j), weight in zip(pairs, weights, strict=True)
    ]
    return sum(terms) / len(pairs)


def term_of(student):
    return student.terms["hidden_states"]


def loss_of(module, batch, student=0):
    means, _ = module.students[student](batch, module.ask_teacher(batch))
    return means["hidden_states"].value


class Texts(L.LightningDataModule):
    """40 training and 11 held-out texts of different lengths, in a fixed order."""

    def __init__(self, teacher, held_out_batch=3):
        super().__init__()
        self.held_out_batch = held_out_batch
        tokenizer = AutoTokenizer.from_pretrained(teacher)
        self.collate = DataCollatorWithPadding(tokenizer)
        texts = [" ".join((TEXTS[i % 3] + " loudly" * (i % 5)).split()[: 3 + i % 7]) for i in range(51)]
        rows = [tokenizer(text) for text in texts]
        self.train, self.held_out = rows[:40], rows[40:]

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=4, collate_fn=self.collate)

    def val_dataloader(self):
        return DataLoader(self.held_out, batch_size=self.held_out_batch, collate_fn=self.collate)


def trainer(**settings):
    defaults = {"max_epochs": 1, "gradient_clip_val": 0.05, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **(defaults | settings),
    )


def equal_states(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


# -- the loss


@pytest.mark.parametrize("mapping", PAIRS)
def test_the_loss_is_the_mean_over_pairs_of_the_error_over_real_tokens(teacher, mapping):
    module, batch = distiller(teacher, mapping=mapping), batch_of(teacher)
    assert not batch["attention_mask"].all()
    expected = loss_by_hand(module.students[0], teacher, batch, PAIRS[mapping])
    assert loss_of(module, batch).item() == pytest.approx(expected, rel=1e-5)


def test_a_student_as_deep_as_its_teacher_has_one_projection_a_layer(teacher):
    module, batch = distiller(teacher, DEEP), batch_of(teacher)
    shapes = [tuple(projection.weight.shape) for projection in term_of(module.students[0]).projections]
    assert shapes == [(16, 12)] * 4 and all(p.bias is None for p in term_of(module.students[0]).projections)
    expected = loss_by_hand(module.students[0], teacher, batch, [(i, i) for i in range(1, 5)])
    assert loss_of(module, batch).item() == pytest.approx(expected, rel=1e-5)


def test_the_loss_can_be_divided_by_the_variance_over_the_held_out_tokens(teacher):
    module, data, batch = distiller(teacher, normalize="variance"), Texts(teacher), batch_of(teacher)
    trainer(max_steps=1).fit(module, datamodule=data)
    tokens = [layer_outputs(plain(teacher), batch) for batch in data.val_dataloader()]
    tokens = {layer: np.concatenate([states[layer] for states in tokens]) for layer in range(1, 5)}
    variances = {layer: states.var(axis=0).mean() for layer, states in tokens.items()}
    term = term_of(module.students[0])
    assert term.variance.numpy() == pytest.approx([variances[j] for j in (1, 3, 3, 4)], rel=1e-4)
    expected = loss_by_hand(module.students[0], teacher, batch, PAIRS["uniform_last"], variances)
    assert loss_of(module.eval(), batch).item() == pytest.approx(expected, rel=1e-4)
    # To predict the mean explains nothing: over the held-out tokens, this student's loss is 1.
    mean = {j: torch.tensor(states.mean(0), dtype=torch.float32) for j, states in tokens.items()}
    for (_, j), projection in zip(PAIRS["uniform_last"], term.projections, strict=True):
        projection.weight.data = mean[j][:, None].repeat(1, 8) / 8
    constant = {hidden_state(i): torch.ones(len(tokens[1]), 8) for i in (1, 2)}
    theirs = {hidden_state(j): torch.tensor(states, dtype=torch.float32) for j, states in tokens.items()}
    loss = term(constant, theirs, batch).value
    assert loss.item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("family", ["teacher", "roberta_teacher"])
def test_padding_changes_neither_loss_nor_gradients(family, request):
    path = request.getfixturevalue(family)
    module, batch = distiller(path), batch_of(path)

    def outcome(batch):
        module.zero_grad()
        loss = loss_of(module, batch)
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in module.students[0].parameters() if p.grad is not None)]

    plain = outcome(batch)
    padding = batch["attention_mask"] == 0
    assert padding.any() and len(plain) > 10

    noisy = batch_of(path)
    noisy["input_ids"][padding] = torch.randint(7, 40, (int(padding.sum()),))
    further = batch_of(path)
    for name, value in (("input_ids", module.tokenizer.pad_token_id), ("attention_mask", 0), ("token_type_ids", 0)):
        if name in further:
            further[name] = torch.nn.functional.pad(further[name], (0, 5), value=value)
    for changed in (noisy, further):
        for before, after in zip(plain, outcome(changed), strict=True):
            torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-6)

    real = batch_of(path)
    real["input_ids"][0, 2] += 1  # a real token does matter
    changes = [(after - before).abs().max() for before, after in zip(plain, outcome(real), strict=True)]
    assert max(changes) > 1e-3


def test_a_padded_batch_of_a_roberta_is_as_its_rows_alone(roberta_teacher):
    module = distiller(roberta_teacher)
    alone = [batch_of(roberta_teacher, [text]) for text in TEXTS]
    counts = [batch["input_ids"].numel() for batch in alone]
    assert len(set(counts)) == 3 and all(batch["attention_mask"].all() for batch in alone)
    losses = [loss_of(module, batch).item() for batch in alone]
    expected = np.average(losses, weights=counts)
    assert loss_of(module, batch_of(roberta_teacher)).item() == pytest.approx(expected, rel=1e-5)


def test_the_held_out_loss_is_over_all_held_out_tokens(teacher):
    module, data = distiller(teacher, SMALL, DEEP), Texts(teacher)
    run = trainer()
    run.validate(module, datamodule=data, verbose=False)
    rows = [data.collate([row]) for row in data.held_out]
    counts = [row["input_ids"].numel() for row in rows]
    pairs = [PAIRS["uniform_last"], [(i, i) for i in range(1, 5)]]
    expected = [
        np.average([loss_by_hand(student, teacher, row, own) for row in rows], weights=counts)
        for student, own in zip(module.students, pairs, strict=True)
    ]
    assert [result["loss"] for result in module.results] == pytest.approx(expected, rel=1e-4)
    assert run.callback_metrics["val/loss/1"].item() == pytest.approx(expected[1], rel=1e-4)
    assert run.callback_metrics["val/loss"].item() == pytest.approx(sum(expected) / 2, rel=1e-4)


def test_a_held_out_loss_that_is_nan_on_some_rows_is_nan(teacher):
    sound, module = (distiller(teacher, SMALL, DEEP) for _ in range(2))
    data = Texts(teacher, held_out_batch=1)
    word = module.tokenizer.convert_tokens_to_ids("anna")
    assert {word in row["input_ids"] for row in data.held_out} == {True, False}
    module.students[0].model.embeddings.word_embeddings.weight.data[word] = torch.nan
    for one in (sound, module):
        trainer().validate(one, datamodule=data, verbose=False)
    assert np.isnan(module.results[0]["loss"])
    assert module.results[1] == sound.results[1]  # and its neighbour is none the worse


# -- training


def test_a_student_learns(teacher):
    data = Texts(teacher)
    start, module = (distiller(teacher, learning_rate=1e-2) for _ in range(2))
    trainer().validate(start, datamodule=data, verbose=False)
    trainer(max_epochs=4, gradient_clip_val=1.0).fit(module, datamodule=data)
    assert module.results[0]["loss"] < 0.8 * start.results[0]["loss"]


def test_a_module_can_be_validated_before_it_is_trained(teacher):
    module, data = distiller(teacher), Texts(teacher)
    run = trainer()
    run.validate(module, datamodule=data, verbose=False)
    run.fit(module, datamodule=data)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_gang_trains_each_student_as_it_would_train_alone(teacher, threads, request):
    torch.set_num_threads(threads)
    request.addfinalizer(lambda: torch.set_num_threads(1))
    architectures = [SMALL, DEEP, WIDE]
    # The variances are sums over all held-out tokens, which two threads round otherwise than one.
    settings = {"learning_rate": 1e-2, "normalize": "variance" if threads == 1 else "none"}
    gang = distiller(teacher, *architectures, **settings)
    start = {name: value.clone() for name, value in gang.state_dict().items()}
    norms = []

    class Norms(Callback):
        def on_before_optimizer_step(self, *_):
            grads = [[p.grad.norm() for p in student.parameters() if p.grad is not None] for student in gang.students]
            norms.append([torch.stack(own).norm().item() for own in grads])

    workers = set()
    for student in gang.students:
        student.register_forward_hook(lambda *_: workers.add(current_thread()))
    run = trainer(callbacks=[Norms()])
    run.fit(gang, datamodule=Texts(teacher))
    assert run.global_step == STEPS
    assert len(workers) == threads and (main_thread() in workers) == (threads == 1)
    torch.set_num_threads(1)  # the share of each
    assert np.max(norms) > 0.05 and np.min(np.max(norms, axis=0)) > 0.05  # clipping has work to do for every one
    for i, architecture in enumerate(architectures):
        alone = distiller(teacher, architecture, **settings)
        prefix = f"students.{i}."
        known = variance_of(alone) if threads == 1 else {}
        equal_states(alone.students[0].state_dict(), strip(start, prefix) | known)
        trainer().fit(alone, datamodule=Texts(teacher))
        equal_states(alone.students[0].state_dict(), strip(gang.state_dict(), prefix))
        assert alone.results[0] == gang.results[i]
        moved = [not torch.equal(start[name], value) for name, value in gang.state_dict().items() if prefix in name]
        assert sum(moved) > 10


def strip(state, prefix):
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def variance_of(module):
    return {"objectives.0.hidden_states.variance": term_of(module.students[0]).variance}


def test_each_student_is_clipped_by_its_own_norm(teacher):
    module, batch = distiller(teacher, SMALL, DEEP), batch_of(teacher)
    (100 * loss_of(module, batch, 0) + 1e-3 * loss_of(module, batch, 1)).backward()
    gradients = [[p.grad for p in student.parameters() if p.grad is not None] for student in module.students]
    before = [torch.cat([g.flatten() for g in own]).clone() for own in gradients]
    assert before[0].norm() > 1 > before[1].norm()
    module.configure_gradient_clipping(None, 1.0)
    after = [torch.cat([g.flatten() for g in own]) for own in gradients]
    torch.testing.assert_close(after[0], before[0] / before[0].norm(), rtol=1e-4, atol=1e-7)
    assert torch.equal(after[1], before[1])


def test_the_seed_alone_decides_the_initial_weights(teacher):
    torch.manual_seed(0)
    one = distiller(teacher, SMALL, seed=7)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    other = distiller(teacher, DEEP, SMALL, seed=7)
    assert torch.equal(torch.rand(3), expected)  # and it leaves the global generator alone
    equal_states(one.students[0].state_dict(), other.students[1].state_dict())
    different = distiller(teacher, SMALL, seed=8).students[0]
    name = "encoder.layer.0.output.dense.weight"
    assert not torch.equal(different.model.state_dict()[name], one.students[0].model.state_dict()[name])
    assert not torch.equal(term_of(different).projections[0].weight, term_of(one.students[0]).projections[0].weight)


def test_the_learning_rate_rises_over_the_warm_up_and_then_falls_to_zero(teacher):
    seen = []

    class Rates(Callback):
        def on_before_optimizer_step(self, run, *_):
            seen.append([group["lr"] for group in run.optimizers[0].param_groups])

    run = trainer(max_epochs=2, callbacks=[Rates()])
    run.fit(distiller(teacher, learning_rate=1e-3, warmup=0.2), datamodule=Texts(teacher))
    steps, rise = 2 * STEPS, 4
    expected = [1e-3 * min(t / rise, (steps - t) / (steps - rise)) for t in range(steps)]
    assert np.array(seen) == pytest.approx(np.array([[rate, rate] for rate in expected]))


def test_biases_and_layer_norms_are_not_decayed(teacher):
    module = distiller(teacher, learning_rate=0.1, warmup=0.0, weight_decay=0.5)
    before = {name: value.detach().clone() for name, value in module.named_parameters()}

    class NoGradient(Callback):
        def on_before_optimizer_step(self, *_):
            for parameter in module.parameters():
                parameter.grad = torch.zeros_like(parameter)

    trainer(max_steps=1, callbacks=[NoGradient()]).fit(module, datamodule=Texts(teacher))
    for name, value in module.named_parameters():
        spared = name.endswith(".bias") or "LayerNorm" in name
        torch.testing.assert_close(value.detach(), before[name] * (1 if spared else 1 - 0.1 * 0.5))


def test_bf16_mixed_precision_stays_close_to_full_precision(teacher):
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        module = distiller(teacher, normalize="variance")
        trainer(precision=precision).fit(module, datamodule=Texts(teacher))
        assert {value.dtype for value in module.parameters()} == {torch.float32}
        losses[precision] = module.results[0]["loss"]
    assert losses["bf16-mixed"] != losses["32-true"]
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=0.03)


# -- checkpoints


class KilledError(Exception):
    pass


@pytest.fixture
def epochs(monkeypatch):
    """The epochs that begin, by number; `epochs.killed_in` ends a run as its epoch of that number begins."""

    class Epochs(list):
        killed_in = None

    begun = Epochs()
    begin = StudentDistiller.on_train_epoch_start

    def on_train_epoch_start(module):
        begun.append(module.current_epoch)
        if module.current_epoch == begun.killed_in:
            raise KilledError
        begin(module)

    monkeypatch.setattr(StudentDistiller, "on_train_epoch_start", on_train_epoch_start)
    return begun


def distil(folder, teacher, *overrides):
    """`train.py` on four epochs of the built-in task with a gang of two, without latencies."""
    gang = [OmegaConf.create(architecture.to_dict()) for architecture in (SMALL, WIDE)]
    settings = ["data=demo", "data.rows=24", "data.held_out=6", "data.proxy=1", "data.batch_size=4"]
    settings += ["objective.normalize=variance", "module.dropout=0.0", "module.learning_rate=1e-2"]
    settings += ["trainer.accelerator=cpu", "trainer.max_epochs=4", "search.stages.mini.trainer.max_epochs=4"]
    settings += [f"teacher.path={teacher}", f"paths.runs={folder}", f"paths.output={folder}", "search.dir=null"]
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("train", [*settings, *overrides])
    cfg.architectures, cfg.latency = gang, None
    return runner.run(cfg)


@pytest.mark.parametrize("overrides", [["job.kind=full"], ["job.kind=mini"], ["module.learning_rate=0"]], ids=" ".join)
def test_a_killed_run_goes_on_where_it_was(teacher, tmp_path, epochs, overrides):
    """Whether its last epoch gave the best weights so far or not."""
    epochs.killed_in = 2
    with pytest.raises(KilledError):
        distil(tmp_path, teacher, *overrides)
    assert epochs == [0, 1, 2]
    epochs.clear()
    epochs.killed_in = None
    distil(tmp_path, teacher, *overrides)
    assert epochs == [2, 3]


def test_a_killed_run_ends_as_if_it_had_not_been_killed(teacher, tmp_path, epochs):
    whole = distil(tmp_path / "whole", teacher)
    epochs.killed_in = 2
    with pytest.raises(KilledError):
        distil(tmp_path / "cut", teacher)
    epochs.killed_in = None
    assert distil(tmp_path / "cut", teacher) == whole
    last = [torch.load(tmp_path / run / "last.ckpt", weights_only=True) for run in ("whole", "cut")]
    assert last[0]["global_step"] == last[1]["global_step"] == 4 * 6
    equal_states(*(checkpoint["state_dict"] for checkpoint in last))


def test_nothing_but_the_checkpoint_decides_how_a_run_goes_on(teacher, tmp_path):
    """The weights, their optimizer, and the variances come from it, not from the seed of the run that reads it."""

    class Stop(Callback):
        def on_train_batch_start(self, run, *_):
            if run.global_step == STEPS + 3:
                raise KilledError

    settings = {"learning_rate": 1e-2, "normalize": "variance"}
    whole, cut, resumed = (distiller(teacher, SMALL, WIDE, seed=seed, **settings) for seed in (3, 3, 99))
    data = Texts(teacher)
    trainer(max_epochs=3).fit(whole, datamodule=data)
    with pytest.raises(KilledError):
        checkpoints = ModelCheckpoint(tmp_path, filename="kept")
        trainer(max_epochs=3, enable_checkpointing=True, callbacks=[Stop(), checkpoints]).fit(cut, datamodule=data)
    data.held_out = data.held_out[:4]
    trainer(max_epochs=3).fit(resumed, datamodule=data, ckpt_path=tmp_path / "kept.ckpt", weights_only=True)
    equal_states(resumed.state_dict(), whole.state_dict())


@pytest.fixture(scope="module")
def checkpoint(teacher, tmp_path_factory) -> Path:
    """Of a gang of two that has run its ten steps."""
    path = tmp_path_factory.mktemp("run") / "last.ckpt"
    run = trainer()
    run.fit(distiller(teacher, SMALL, WIDE), datamodule=Texts(teacher))
    run.save_checkpoint(path)
    return path


def test_the_checkpoint_is_data_and_holds_the_students_alone(checkpoint, teacher):
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    expected = distiller(teacher, SMALL, WIDE).students
    numbers = sum(p.numel() for p in expected.parameters()) + sum(len(term_of(s).pairs) for s in expected)
    assert sum(value.numel() for value in state.values()) == numbers  # the pairs' variances are the rest
    words = plain(teacher).embeddings.word_embeddings.weight
    assert not any(value.shape == words.shape for value in state.values())


@pytest.mark.parametrize("architectures", [[SMALL, DEEP], [WIDE, SMALL], [SMALL]])
def test_a_checkpoint_of_other_architectures_is_refused(checkpoint, teacher, architectures):
    module = distiller(teacher, *architectures)
    theirs, ours = (", ".join(map(str, names)) for names in ([SMALL, WIDE], architectures))
    with pytest.raises(ConfigError) as refusal:
        trainer().fit(module, datamodule=Texts(teacher), ckpt_path=checkpoint, weights_only=True)
    assert re.search(f"^checkpoint: .*{re.escape(theirs)};.*{re.escape(ours)}$", str(refusal.value))
    with pytest.raises(ConfigError):
        resumable(checkpoint, module, Texts(teacher))


def test_there_is_nothing_to_resume_before_the_first_checkpoint(teacher, tmp_path):
    assert resumable(tmp_path / "last.ckpt", distiller(teacher), Texts(teacher)) is None


def test_a_checkpoint_of_other_settings_is_refused_with_its_folder(checkpoint, teacher):
    module = distiller(teacher, SMALL, WIDE, mapping="last")
    with pytest.raises(ConfigError, match=rf"paths.output={checkpoint.parent}: .*projections"):
        resumable(checkpoint, module, Texts(teacher))


# -- refusals


def test_a_gang_of_nobody_is_refused(teacher):
    with pytest.raises(ConfigError, match=r"architectures=\[\]"):
        StudentDistiller(teacher, [], hidden_states())


def test_a_student_deeper_than_its_teacher_is_refused(teacher):
    with pytest.raises(ConfigError, match=r"num_hidden_layers=5\b.*\b4\b"):
        distiller(teacher, Architecture(5, 2, 8, 16, "gelu"))


def test_unknown_names_are_refused_with_the_choices(teacher):
    with pytest.raises(ConfigError, match=r"^objective.normalize=std.*none, variance"):
        distiller(teacher, normalize="std")
    with pytest.raises(ConfigError, match=r"architecture.hidden_act=gilu.*gelu.*relu.*silu"):
        distiller(teacher, Architecture(2, 2, 8, 16, "gilu"))


def test_a_teacher_that_is_not_there_is_refused_with_its_path(tmp_path):
    with pytest.raises(ConfigError, match=f"teacher.path={tmp_path}"):
        distiller(str(tmp_path))

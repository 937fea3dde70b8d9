"""Distillation in stages: each one's loss by hand, what it may change, and that a killed run ends as a whole one."""

import json
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch.callbacks import Callback
from objectives import objective
from omegaconf import OmegaConf
from scipy.special import log_softmax, softmax
from torch.utils.data import DataLoader
from transformers import AlbertConfig, AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from kdnas.app import run as runner
from kdnas.base.config import instantiate
from kdnas.base.errors import ConfigError
from kdnas.datamodules import grammar
from kdnas.models.architecture import Architecture
from kdnas.models.exports import export
from kdnas.models.features import LOGITS
from kdnas.models.heads import Classifier, Encoder, MaskedLM, unfreezing_groups
from kdnas.models.initialisation import PretrainedWeights
from kdnas.models.loading import load_config
from kdnas.models.resizing import student_config
from kdnas.modules import StudentDistiller
from kdnas.training.best_weights import BestWeights

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

CONF = Path(__file__).resolve().parent.parent / "conf"
SMALL = Architecture(2, 2, 8, 16, "gelu")
WIDE = Architecture(1, 4, 20, 32, "silu")
ROWS = [
    ("all big dogs are running", "some dogs are running", 0),
    ("no cats are sleeping quietly in the park", "anna is dancing", 1),
    ("some cats are not dozing", "all cats are dozing", 2),
    ("anna is swimming loudly", "some women are swimming", 0),
]
STAGES = ("representation", "logits", "labels")


@pytest.fixture(scope="module")
def classifier(teacher, teach, tmp_path_factory) -> str:
    """The random teacher with a classifier of three classes that has learned a little."""
    folder = tmp_path_factory.mktemp("teacher") / "classifier"
    torch.manual_seed(4)
    model = AutoModelForSequenceClassification.from_pretrained(teacher, num_labels=3)
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    teach(model, tokenizer, [*grammar.pairs(60, seed=6)[24:40], *grammar.pairs(41, seed=5)[24:33]])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def recipe(epochs=(1, 1, 1), gradual=False, loss="mse", tokens="first", num_labels=3):
    stages = {
        stage: {"epochs": number, "learning_rate": 1e-2, "gradual": gradual and stage != "representation"}
        for stage, number in zip(STAGES, epochs, strict=True)
    }
    stages["representation"] |= {"loss": loss, "tokens": tokens}
    task = {"_target_": "labelled.classification", "num_labels": num_labels}
    return objective("xtremedistil", task, **stages)


def distiller(path, *architectures, **settings):
    return StudentDistiller(path, architectures or [SMALL], recipe(**settings), dropout=0.0, seed=3)


class Pairs(L.LightningDataModule):
    """The labelled pairs, three to a batch."""

    def __init__(self, path):
        super().__init__()
        tokenizer = AutoTokenizer.from_pretrained(path)
        self.collate = DataCollatorWithPadding(tokenizer)
        self.rows = [{**tokenizer(one, other), "labels": label} for one, other, label in ROWS]

    def train_dataloader(self):
        return DataLoader(self.rows, batch_size=3, collate_fn=self.collate)

    val_dataloader = train_dataloader

    @property
    def batch(self):
        return self.collate(self.rows)


def trainer(**settings):
    return L.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )


def loss_of(module, batch):
    """The mean of the only term of the current stage."""
    (loss,) = module.students[0](batch, module.ask_teacher(batch))[0].values()
    return loss


def last_states(model, batch):
    """The last layer's states by the model itself, (rows, length, width), and its logits."""
    with torch.no_grad():
        given = model.eval()(**{k: v for k, v in batch.items() if k != "labels"}, output_hidden_states=True)
    return given.hidden_states[-1].double().numpy(), given.logits.double().numpy()


# -- the losses


@pytest.mark.parametrize("tokens", ["first", "all"])
@pytest.mark.parametrize("loss", ["mse", "kl"])
def test_the_representation_stage(classifier, loss, tokens):
    module, batch = distiller(classifier, loss=loss, tokens=tokens), Pairs(classifier).batch
    student = module.students[0]
    own, _ = last_states(student.model, batch)
    aim, _ = last_states(AutoModelForSequenceClassification.from_pretrained(classifier), batch)
    mask = batch["attention_mask"].numpy().astype(bool)
    if tokens == "first":
        mask = np.zeros_like(mask)
        mask[:, 0] = True
    projected = own[mask] @ student.terms["hidden_state"].projections[0].weight.detach().double().numpy().T
    if loss == "mse":
        expected = np.mean((projected - aim[mask]) ** 2)
    else:
        theirs = softmax(aim[mask], axis=-1)
        expected = np.mean(np.sum(theirs * (np.log(theirs) - log_softmax(projected, axis=-1)), axis=-1))
    assert expected > 0
    assert loss_of(module, batch).value.item() == pytest.approx(expected, rel=1e-4)


def test_the_logit_and_the_label_stage(classifier):
    module, batch = distiller(classifier), Pairs(classifier).batch
    student = module.students[0].eval()
    _, own = last_states(student.model, batch)
    _, aim = last_states(AutoModelForSequenceClassification.from_pretrained(classifier), batch)
    labels = [label for _, _, label in ROWS]
    expected = {
        1: np.mean([0.5 * np.linalg.norm(mine - theirs) ** 2 for mine, theirs in zip(own, aim, strict=True)]),
        2: np.mean([-log_softmax(mine)[label] for mine, label in zip(own, labels, strict=True)]),
    }
    for stage, loss in expected.items():
        student.stage = stage
        assert loss_of(module, batch).value.item() == pytest.approx(loss, rel=1e-5)
    assert not module.ask_teacher(batch)  # hard labels cost no pass of the teacher


def test_held_out_figures_are_over_all_rows(classifier):
    """The loss of each stage is a mean over what it is the mean of: rows, or real tokens."""
    for tokens in ("first", "all"):
        module, data = distiller(classifier, tokens=tokens), Pairs(classifier)
        trainer().validate(module, datamodule=data, verbose=False)
        whole = data.batch
        _, own = module.students[0](whole, module.ask_teacher(whole))
        guessed = own[LOGITS].argmax(-1)
        expected = {
            "loss": loss_of(module, whole).value.item(),
            "accuracy": (guessed == whole["labels"]).float().mean().item(),
        }
        assert module.results[0] == pytest.approx(expected, rel=1e-5)


def test_masked_language_modelling_counts_masked_tokens_alone(teacher):
    stages = {"epochs": 1, "learning_rate": 1e-3}
    masked_lm = objective("masked_lm", representation=stages, tokens=stages)
    module = StudentDistiller(teacher, [SMALL], masked_lm, seed=3, dropout=0.0)
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    batch = tokenizer([ROWS[0][0], ROWS[1][0]], padding=True, return_tensors="pt")
    batch["labels"] = torch.full_like(batch["input_ids"], -100)
    for row, position in ((0, 2), (1, 1), (1, 4)):
        batch["labels"][row, position] = batch["input_ids"][row, position]
        batch["input_ids"][row, position] = tokenizer.mask_token_id
    student = module.students[0].eval()
    student.stage = 1
    logits = student.model(**{k: v for k, v in batch.items() if k != "labels"}).logits.detach().double().numpy()
    assert logits.shape == (*batch["labels"].shape, len(tokenizer))  # transformers' own head, on all tokens
    masked = batch["labels"].numpy() != -100
    expected = -np.mean(log_softmax(logits[masked], axis=-1)[range(3), batch["labels"].numpy()[masked]])
    loss = loss_of(module, batch)
    assert loss.value.item() == pytest.approx(expected, rel=1e-5) and loss.count == 3


# -- the schedule


class Changes(Callback):
    """Which parameters each epoch changes, and the learning rates of its steps."""

    def __init__(self):
        self.changed, self.rates = [], []

    def on_train_epoch_start(self, _, module):
        self.before = {name: value.detach().clone() for name, value in module.named_parameters()}

    def on_before_optimizer_step(self, run, *_):
        self.rates.append(run.optimizers[0].param_groups[0]["lr"])

    def on_train_epoch_end(self, _, module):
        now = module.named_parameters()
        self.changed.append({name for name, value in now if not torch.equal(value, self.before[name])})


def of(names, *parts):
    return {name for name in names if any(part in name for part in parts)}


def test_every_epoch_changes_what_it_should_and_nothing_else(classifier):
    """A student of two layers, four epochs a stage: the head, then the layers from the last down, then all."""
    module, watch = distiller(classifier, epochs=(1, 4, 4), gradual=True), Changes()
    module.best.update = lambda scores: None  # going back to the best weights would be a change of its own
    trainer(max_epochs=9, callbacks=[watch]).fit(module, datamodule=Pairs(classifier))
    every = {name for name, _ in module.named_parameters()}
    head = of(every, "model.pooler", "model.bert.pooler", "model.classifier")
    second, first = of(every, "layer.1."), of(every, "layer.0.")
    words, projections = of(every, ".embeddings."), of(every, "projection")
    assert every == head | second | first | words | projections and head and words and projections
    # Token types and positions that no row has get no gradient; they are rows of tables that do change.
    assert watch.changed[0] == second | first | words | projections
    for stage in (watch.changed[1:5], watch.changed[5:]):
        assert stage == [head, head | second, head | second | first, head | second | first | words]


def test_the_plain_schedule_trains_everything_from_the_start(classifier):
    module, watch = distiller(classifier, epochs=(0, 1, 1)), Changes()
    trainer(max_epochs=2, callbacks=[watch]).fit(module, datamodule=Pairs(classifier))
    every = {name for name, _ in module.named_parameters()}
    assert watch.changed == [every, every]


def test_each_stage_has_its_own_schedule(classifier):
    module, watch = distiller(classifier, epochs=(1, 2, 3)), Changes()
    module.warmup = 0.5
    trainer(max_epochs=6, callbacks=[watch]).fit(module, datamodule=Pairs(classifier))
    per_epoch = 2
    expected = []
    for epochs in (1, 2, 3):
        shares = [step / (epochs * per_epoch) for step in range(epochs * per_epoch)]
        expected += [1e-2 * (2 * share if share < 0.5 else 2 * (1 - share)) for share in shares]
    assert watch.rates == pytest.approx(expected)


def test_a_stage_begins_with_the_best_weights_of_the_one_before(classifier):
    """Its last epochs make a student worse; the next stage and the result do not suffer from that."""
    kept, begun = [], []

    class Spoil(Callback):
        def on_train_batch_start(self, run, module, batch, index):
            if index == 0:
                begun.append({name: value.clone() for name, value in module.students[0].state_dict().items()})

        def on_validation_epoch_start(self, run, module):
            if run.current_epoch in (1, 3):
                for value in module.students[0].parameters():
                    value.data += 10.0

        def on_validation_end(self, run, module):
            kept.append({name: value.clone() for name, value in module.students[0].state_dict().items()})

    module = distiller(classifier, epochs=(2, 2, 0))
    trainer(max_epochs=4, callbacks=[Spoil()]).fit(module, datamodule=Pairs(classifier))
    equal(begun[2], kept[0])
    module.best.restore()
    equal(module.students[0].state_dict(), kept[2])


def equal(one, other):
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_best_weights_of_each_member_of_a_gang_are_its_own():
    members = [torch.nn.Linear(1, 1, bias=False) for _ in range(3)]
    best = BestWeights(members)
    for value, scores in ((1.0, (0.1, 0.9, 0.5)), (2.0, (0.7, 0.3, float("nan"))), (3.0, (0.7, 0.8, 0.9))):
        for member in members:
            member.weight.data.fill_(value)
        best.update(scores)
    best.restore()
    assert [member.weight.item() for member in members] == [2.0, 1.0, 2.0]  # the last one has diverged, and stays so
    assert best.state_dict() == {}


def test_the_groups_of_a_model_are_all_of_it_once(classifier, roberta_teacher):
    for path, head in ((classifier, Classifier(3)), (roberta_teacher, Classifier(2)), (classifier, MaskedLM())):
        model = head.new(student_config(load_config(path), SMALL), seed=0)
        groups = unfreezing_groups(model)
        assert len(groups) == 2 + SMALL.num_hidden_layers
        assert sorted(id(p) for group in groups for p in group) == sorted(id(p) for p in model.parameters())


def test_layers_that_share_their_weights_are_one_group(teacher):
    sizes = {"num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 16, "embedding_size": 8}
    model = Classifier(2).make(AlbertConfig(vocab_size=50, num_hidden_layers=3, **sizes))
    groups = unfreezing_groups(model)
    assert len(groups) == 3 and all(groups)
    assert sorted(id(p) for group in groups for p in group) == sorted(id(p) for p in model.parameters())


def test_the_baselines():
    with initialize_config_dir(str(CONF), version_base=None):
        search = compose("search", ["+experiment=mnli", "+baseline=random_sampling", "seed=2"])
        plain = compose("train", ["+experiment=mnli"])
        alone = compose("train", ["+experiment=mnli", "+baseline=no_distillation"])
    assert search.controller._target_ == "optuna.samplers.RandomSampler" and search.name == "random_2"
    assert (search.search.episodes, search.search.candidates, search.search.finalists) == (1, 5, 5)
    whole, labels = instantiate(plain.objective), instantiate(alone.objective)
    assert [stage.name for stage in whole.stages] == list(STAGES)
    assert [(stage.name, stage.gradual) for stage in labels.stages] == [("labels", False)]
    assert labels.epochs == whole.epochs  # as much training, or the comparison would be unfair


# -- through the runner


class KilledError(Exception):
    pass


def staged(folder, classifier, *overrides):
    """`train.py` with the objective of the experiment on the built-in task, small."""
    settings = ["data=demo", "task=demo", "objective=xtremedistil", "data.rows=24", "data.held_out=9", "data.proxy=1"]
    settings += ["data.batch_size=4", "trainer.accelerator=cpu", "trainer.max_epochs=null", "module.dropout=0.2"]
    settings += [f"objective.{stage}.learning_rate=1e-2" for stage in STAGES]
    settings += [f"objective.{stage}.epochs=2" for stage in STAGES]
    settings += ["trainer.precision=32-true"]  # in bf16, what the random teacher has learned is lost
    settings += [f"teacher.path={classifier}", f"paths.runs={folder}", f"paths.output={folder}", "search.dir=null"]
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("train", [*settings, *overrides])
    cfg.architectures, cfg.latency = [OmegaConf.create(SMALL.to_dict())], None
    return runner.run(cfg)


@pytest.mark.parametrize("killed_in", [1, 2, 3, 5])
def test_a_run_killed_in_any_stage_ends_as_if_it_had_not_been(classifier, tmp_path, monkeypatch, killed_in):
    whole = staged(tmp_path / "whole", classifier)
    step = StudentDistiller.training_step

    def killed(module, batch, index):
        if module.current_epoch == killed_in and index == 3:
            raise KilledError
        return step(module, batch, index)

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(StudentDistiller, "training_step", killed)
        staged(tmp_path / "cut", classifier)
    assert staged(tmp_path / "cut", classifier) == whole
    weights = [torch.load(tmp_path / run / "best.ckpt", weights_only=True) for run in ("whole", "cut")]
    equal(*(checkpoint["state_dict"] for checkpoint in weights))


def test_what_is_left_behind_is_the_classifier_with_its_best_weights(classifier, tmp_path):
    figures = staged(tmp_path, classifier)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    saved = torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"]
    prefix = "students.0.model."
    equal(model.state_dict(), {name[len(prefix) :]: value for name, value in saved.items() if name.startswith(prefix)})
    assert set(figures) == {"loss", "accuracy"}


def test_a_student_can_start_from_a_pretrained_encoder(classifier, tmp_path):
    encoder = Encoder().new(student_config(load_config(classifier), SMALL), seed=7)
    folder = export(encoder, AutoTokenizer.from_pretrained(classifier), tmp_path / "pretrained")
    module = StudentDistiller(classifier, [SMALL], recipe(), seed=3, init=PretrainedWeights(str(folder)))
    own = module.students[0].model.base_model.state_dict()
    equal(encoder.state_dict(), {name: own[name] for name in encoder.state_dict()})
    random = distiller(classifier).students[0].model
    head = "classifier.weight"
    assert torch.equal(module.students[0].model.state_dict()[head], random.state_dict()[head])  # the seed's
    with pytest.raises(ConfigError, match="student.init.source=.*num_hidden_layers is 2; must be the student's 1"):
        StudentDistiller(classifier, [WIDE], recipe(), init=PretrainedWeights(str(folder)))


def test_further_splits_have_their_own_figures(classifier, tmp_path):
    pairs = grammar.pairs(60, seed=6)
    parts = {"train": pairs[:24], "matched": pairs[24:40], "mismatched": pairs[40:]}
    for name, rows in parts.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        + "".join(f"  - split: {name}\n    path: {name}.jsonl\n" for name in parts)
        + "---\n"
    )
    data = ["data=glue", "task=mnli", f"data.path={tmp_path}", "data.name=null", "data.validation=matched"]
    figures = staged(tmp_path / "run", classifier, *data, "data.also={other:mismatched}", "data.held_out=20")
    assert set(figures) == {"loss", "accuracy", "accuracy_other"}
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run/model")
    for figure, split in (("accuracy", "matched"), ("accuracy_other", "mismatched")):
        rows = parts[split]
        batch = tokenizer(
            [r["premise"] for r in rows], [r["hypothesis"] for r in rows], padding=True, return_tensors="pt"
        )
        right = (model(**batch).logits.argmax(-1) == torch.tensor([r["label"] for r in rows])).float().mean()
        assert figures[figure] == pytest.approx(right.item())


def test_texts_without_labels_are_learned_from_until_labels_are_needed(classifier, tmp_path):
    pairs = grammar.pairs(41, seed=5)
    for name, rows in (("task/train", pairs[:24]), ("task/validation", pairs[24:33]), ("texts/train", pairs[33:])):
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    extra = f"data.extra=[{{path:{tmp_path}/texts,columns:[premise,hypothesis],label:null}}]"
    names = [
        "task=mnli",
        f"data.path={tmp_path}/task",
        "data.name=null",
        "data.validation=validation",
        "data.max_length=64",
    ]
    staged(tmp_path / "run", classifier, "data=nli", *names, extra)
    steps = torch.load(tmp_path / "run/last.ckpt", weights_only=True)["global_step"]
    assert steps == 4 * (24 + 8) // 4 + 2 * 24 // 4  # four epochs of both, two of the labelled rows, four to a batch


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["objective.representation.loss=l1"], "objective.representation.loss=l1: must be one of kl, mse"),
        (["objective.representation.tokens=some"], "objective.representation.tokens=some: must be one of first, all"),
        (["objective.labels.epochs=-1"], "objective.labels.epochs=-1: must be a whole number from 0"),
        (["objective.logits.learning_rate=0"], "objective.logits.learning_rate=0: must be above 0"),
        ([f"objective.{stage}.epochs=0" for stage in STAGES], "one must be above 0"),
        (["objective.labels.gradual=sometimes"], "objective.labels.gradual=sometimes: must be true or false"),
        (["trainer.precision=17"], "Precision 17 is invalid"),
        (["trainer.max_epochs=3"], "trainer.max_epochs=3: must be null; the stages have epochs of their own"),
        (["trainer.max_steps=30"], "trainer.max_steps=30: must be -1; the stages have epochs of their own"),
        (["task=rte"], "the teacher has 3 labels, the task 2"),
    ],
)
def test_bad_settings_are_refused(classifier, tmp_path, overrides, says):
    with pytest.raises(ConfigError) as refusal:
        staged(tmp_path / "run", classifier, *overrides)
    assert says in str(refusal.value) and not (tmp_path / "run" / "last.ckpt").exists()


def test_a_teacher_without_a_classifier_is_refused(teacher, tmp_path):
    with pytest.raises(ConfigError, match="the teacher has 2 labels, the task 3"):
        Classifier(3).load(teacher)
    with pytest.raises(ConfigError, match="has no classifier; must be fine-tuned"):
        Classifier(2).load(teacher)

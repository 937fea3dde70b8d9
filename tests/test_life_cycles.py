"""A tiny random teacher of every family goes through the commands: cache, search, gang, distillation, fine-tuning."""

import pytest
import torch
from families import SUPPORTED, config_of, families
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import kdnas
from kdnas.base.errors import ConfigError
from kdnas.datamodules import grammar
from kdnas.models.building import fill, new_encoder
from kdnas.models.checkpoints import unpack
from kdnas.models.families import architecture_of

TINY = ["data.rows=48", "data.held_out=16", "trainer.max_epochs=1", "trainer.accelerator=cpu"]
TINY += ["trainer.precision=32-true", "data.batch_size=16", "data.max_length=36"]
SEARCH = ["+experiment=demo", "student/init=random", "++teacher.prepare=null", "space=within_teacher", "space.depths=2"]
SEARCH += ["space.ratios=[0.5]", "search.episodes=1", "search.candidates=2", "search.gang=2", "search.finalists=1"]
SEARCH += [
    "data.proxy=0.5",
    "search.stages.mini.trainer.max_epochs=1",
    "latency.accelerators=[cpu]",
    "latency.length=16",
]
SEARCH += ["latency.repeats=1", "latency.runs=1", "latency.warmup=0", "latency.patience=0", "controller=random"]


def teacher_of(family, folder):
    """Saves a tiny random model of a family, with the tokenizer of the built-in task."""
    tokenizer = grammar.tokenizer(max_length=38)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep")}
    config = config_of(family, **special, vocab_size=len(tokenizer), initializer_range=0.3)
    torch.manual_seed(1)
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", families(SUPPORTED, quick={"deberta", "modernbert"}))
def test_a_teacher_of_every_family_goes_through_a_search_to_fine_tuning(family, tmp_path):
    live(family, family, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize(
    ("teacher", "family"), [("modernbert", "bert"), ("bert", "modernbert"), ("mpnet", "distilbert")]
)
def test_students_of_another_family_go_through_a_search_to_fine_tuning(teacher, family, tmp_path):
    live(teacher, family, tmp_path, f"student.family={family}")
    with pytest.raises(ConfigError, match=f"student.family=null: .* was made with {family}"):
        search(tmp_path)


@pytest.mark.long
def test_layers_of_their_own_go_through_a_search_to_fine_tuning(tmp_path):
    live("albert", "albert", tmp_path, "student.shared=false", "space.num_hidden_layers=[2]")


def search(folder, *words):
    settings = [*TINY, f"paths.runs={folder}", f"teacher.path={folder}/teacher", f"search.dir={folder}/search"]
    return kdnas.run_search(*SEARCH, *settings, *words)


def live(teacher, family, tmp_path, *words):
    """Takes students of a teacher through the commands, and compares what is left behind."""
    path = teacher_of(teacher, tmp_path / "teacher")
    own = architecture_of(AutoModel.from_pretrained(path).config)
    found = search(tmp_path, *words)
    assert len(found) == 2 and (found["num_hidden_layers"] <= own.num_hidden_layers).all()
    biggest = AutoModel.from_pretrained(path).num_parameters()
    assert (found["parameters (M)"] <= biggest / 1e6).all()

    export = found["export"][0]
    model, tokenizer = AutoModel.from_pretrained(export).eval(), AutoTokenizer.from_pretrained(path)
    config, weights, _ = unpack(tmp_path / "search/full/0000/best.ckpt")
    again = new_encoder(config).eval()
    assert not [name for name in fill(again, weights) if not name.startswith("pooler")]
    assert model.config.model_type == family
    batch = tokenizer(["all big dogs are running", "no cats"], padding=True, return_tensors="pt")
    batch = {name: batch[name] for name in ("input_ids", "attention_mask")}
    states, expected = (each(**batch, output_hidden_states=True).hidden_states for each in (model, again))
    assert len(states) == found["num_hidden_layers"][0] + 1
    for one, other in zip(states, expected, strict=True):
        assert torch.equal(one, other)

    fine = ["+experiment=finetune", "task=demo", "data=demo", f"checkpoint={export}", f"paths.output={tmp_path}/fine"]
    assert 0 <= kdnas.distil(*fine, *TINY, f"paths.runs={tmp_path}")["accuracy"] <= 1
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "fine/model")
    assert architecture_of(classifier.config) == architecture_of(config)
    assert any(
        not torch.equal(weight, model.get_parameter(name)) for name, weight in classifier.base_model.named_parameters()
    )

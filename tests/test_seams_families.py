"""A model family and a student source from the outside, each run end to end."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from labelled import load_classifier
from safetensors.torch import load_file
from test_distiller import CONF
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    BertModel,
    PreTrainedConfig,
)

import kdnas
from kdnas.app import run as runner
from kdnas.datamodules import grammar
from kdnas.models.families import Family, family_of, register
from kdnas.models.features import hidden_state
from kdnas.models.forward import outputs
from kdnas.models.initialisation import StudentSource
from kdnas.models.loading import load_encoder

WORDS = ["data=wikipedia", "data.sentences=false", "data.columns=[premise]", "data.name=null", "data.max_length=32"]
WORDS += ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.max_epochs=1", "data.proxy=1"]
SEARCH = [*WORDS, "search.episodes=1", "search.candidates=1", "search.finalists=1", "latency.accelerators=[cpu]"]
SEARCH += ["latency.repeats=1", "latency.runs=1", "latency.length=16", "search.stages.mini.trainer.max_epochs=1"]
SEARCH += ["space.num_hidden_layers=[1]", "space.num_attention_heads=[2]", "space.hidden_size=[8]"]
SEARCH += ["space.intermediate_size=[12]", "space.hidden_act=[relu]", "reward=parameters"]
WORDS += ["outputs=online", "~latency"]
WORDS += ["architecture.num_hidden_layers=1", "architecture.num_attention_heads=2", "architecture.hidden_size=8"]
WORDS += ["architecture.intermediate_size=12", "architecture.hidden_act=relu"]


def trained(teacher, data, folder, *words):
    """Distils a student, and returns the folder of its export."""
    places = [f"teacher.path={teacher}", f"data.path={data}", f"paths.runs={folder}", f"paths.output={folder}/out"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*WORDS, *places, *words, f"paths.export={folder}/out/model"])
    runner.run(cfg)
    return folder / "out/model"


# -- a family


class ToyConfig(PreTrainedConfig):
    model_type = "toy"
    dim: int = 16
    n_layers: int = 2
    n_heads: int = 2
    inner: int = 24
    act: str = "gelu"
    drop: float = 0.0
    table: int = 60
    vocab_size: int = 70
    pad_token_id: int = 0
    type_vocab_size, layer_norm_eps, initializer_range, is_decoder, add_cross_attention = 2, 1e-12, 0.3, False, False
    classifier_dropout = None


@register("toy")
class Toy(Family):
    names = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"} | {
        **{"intermediate_size": "inner", "hidden_act": "act", "max_position_embeddings": "table"},
        **{"hidden_dropout_prob": "drop", "attention_probs_dropout_prob": "drop"},
    }

    def first_position(self, config):
        return 3


class ToyModel(BertModel):
    config_class = ToyConfig

    def forward(self, input_ids, position_ids=None, **others):
        counted = 3 + torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        return super().forward(input_ids, position_ids=counted if position_ids is None else position_ids, **others)


class ToyClassifier(BertForSequenceClassification):
    config_class = ToyConfig

    def __init__(self, config):
        super().__init__(config)
        self.bert = ToyModel(config)
        self.post_init()


AutoConfig.register("toy", ToyConfig)
AutoModel.register(ToyConfig, ToyModel)
AutoModelForSequenceClassification.register(ToyConfig, ToyClassifier)


def test_a_family_from_the_outside_goes_from_config_through_a_search_to_an_export(text_dataset, tmp_path):
    tokenizer = grammar.tokenizer(max_length=57)
    torch.manual_seed(0)
    config = ToyConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    assert family_of(config).positions(config) == 57  # from now on BERT's code finds its names in a ToyConfig
    ToyModel(config).save_pretrained(tmp_path / "t")
    tokenizer.save_pretrained(tmp_path / "t")
    found = kdnas.run_search(
        *SEARCH, f"teacher.path={tmp_path}/t", f"data.path={text_dataset}", f"paths.runs={tmp_path}"
    )
    assert list(found["state"]) == ["finished"]
    folder = Path(found["export"][0])
    written = json.loads((folder / "config.json").read_text())
    values = {"dim": 8, "n_layers": 1, "n_heads": 2, "inner": 12, "act": "relu", "table": 60}
    assert values.items() <= written.items() and "hidden_size" not in written
    batch = tokenizer(["all big dogs are running", "no cats"], padding=True, return_tensors="pt")
    model = load_encoder(str(folder))
    found = outputs(model, batch, {hidden_state(1)})[hidden_state(1)]
    expected = ToyModel.from_pretrained(folder).eval()(**batch).last_hidden_state[batch["attention_mask"].bool()]
    torch.testing.assert_close(found, expected)
    assert load_classifier(str(folder), num_labels=3)[0].bert.embeddings.word_embeddings.weight.shape[1] == 8


# -- a student source


@dataclass(frozen=True)
class FirstColumns(StudentSource):
    """The leading columns of the teacher's word embeddings."""

    teacher: str

    origin = "the teacher's leading columns"

    def __call__(self, encoder, known):
        table = encoder.get_input_embeddings().weight
        table.data.copy_(load_encoder(self.teacher).get_input_embeddings().weight[:, : table.shape[1]])


def test_a_student_source_from_the_outside_is_where_a_training_begins(teacher, text_dataset, tmp_path):
    words = ["student.init._target_=test_seams_families.FirstColumns", "+student.init.teacher=${teacher.path}"]
    folder = trained(teacher, text_dataset, tmp_path, *words, "module.learning_rate=1e-30")  # which moves no weight
    name = "embeddings.word_embeddings.weight"
    first, own = load_file(f"{teacher}/model.safetensors")[name], load_file(folder / "model.safetensors")[name]
    assert torch.equal(own, first[:, :8])

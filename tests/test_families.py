"""Families of models: what is refused at the check, and that the others go all the way."""

import json

import pytest
import torch
import transformers
from families import SUPPORTED, UNLIKE_OTHERS, batch_of, config_of, families
from labelled import load_classifier
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, BertModel

from kdnas.base.errors import ConfigError
from kdnas.datamodules import grammar
from kdnas.datamodules.flat import PadCollator
from kdnas.models.architecture import Architecture
from kdnas.models.building import new_encoder
from kdnas.models.compatibility import check_fit
from kdnas.models.counting import count_flops, count_parameters
from kdnas.models.exports import export
from kdnas.models.families import architecture_of, family_of
from kdnas.models.families.base import FAMILIES
from kdnas.models.families.known import DistilBert
from kdnas.models.features import LOGITS, hidden_state
from kdnas.models.forward import outputs
from kdnas.models.heads import Classifier, Encoder, MaskedLM, unfreezing_groups
from kdnas.models.initialisation import PretrainedWeights
from kdnas.models.loading import check_config, load_config, load_encoder, load_tokenizer
from kdnas.models.resizing import student_config
from kdnas.models.trial import check_architecture

STUDENT = Architecture(2, 3, 24, 20, "relu")
UNLIMITED = ("deberta", "deberta-v2", "eurobert", "modernbert", "nomic_bert")
"""Families with positions relative to each other."""


@pytest.mark.parametrize("family", families(SUPPORTED, UNLIKE_OTHERS - {"deberta", "modernbert"}))
def test_a_family_goes_all_the_way(family, tmp_path):
    teacher = check_config(config_of(family), "teacher.path", family)
    config = student_config(teacher, STUDENT)
    check_architecture(config)
    student, batch = Encoder().new(config, seed=0), batch_of(9, 5)
    given = outputs(student, batch, {hidden_state(1), hidden_state(2)})
    assert all(states.shape == (14, 24) for states in given.values())
    sum(states.square().mean() for states in given.values()).backward()
    assert count_flops(config, 1, 16) < count_flops(teacher, 1, 16)
    assert count_parameters(config) == sum(weight.numel() for weight in student.parameters())

    folder = export(student, grammar.tokenizer(), tmp_path / "model")
    again = load_encoder(str(folder))
    assert architecture_of(again.config) == STUDENT
    for name, weight in again.named_parameters():
        assert torch.equal(weight, student.get_parameter(name)), name
    PretrainedWeights(str(folder))(new_encoder(config))
    classifier, _ = load_classifier(str(folder), num_labels=3)
    logits = outputs(classifier.eval(), batch, {LOGITS})[LOGITS]
    assert logits.shape == (2, 3)
    expected = AutoModelForSequenceClassification.from_pretrained(
        export(classifier, grammar.tokenizer(), tmp_path / "c")
    )
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(expected.eval()(**inputs).logits, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", SUPPORTED)
def test_the_longest_input_is_what_a_model_takes(family):
    config = config_of(family)
    model, longest = new_encoder(student_config(config, STUDENT)).eval(), family_of(config).positions(config)

    def take(length):
        return model(torch.full((1, length), 5), attention_mask=torch.ones(1, length, dtype=torch.long))

    if family in UNLIMITED:
        assert longest == float("inf")
        take(100)
        return
    take(longest)
    with pytest.raises((IndexError, RuntimeError)):
        take(longest + 1)


@pytest.mark.parametrize("family", ["albert", "bert", "distilbert", "electra", "roberta"])
@torch.no_grad()
def test_a_head_is_applied_to_states_as_transformers_does(family):
    config, batch = student_config(config_of(family), STUDENT), batch_of(9, 5)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    for head in (MaskedLM(), Classifier(3)):
        model = head.new(config, seed=0).eval()
        states, logits = model.base_model(**inputs).last_hidden_state, model(**inputs).logits
        found = family_of(config).apply_head(model, states[0] if logits.dim() == 3 else states[:, :1])
        torch.testing.assert_close(found, logits[0] if logits.dim() == 3 else logits)


def test_the_groups_to_unfreeze_end_with_the_embeddings_and_their_projection():
    model = Classifier(3).new(student_config(config_of("electra", embedding_size=12), STUDENT), seed=0)
    *_, last = unfreezing_groups(model)
    lowest = [*model.electra.embeddings.parameters(), *model.electra.embeddings_project.parameters()]
    assert [id(weight) for weight in last] == [id(weight) for weight in lowest]


REFUSED = {
    "esm": "has no hidden_act",
    "funnel": "has no intermediate_size",
    "gpt2": "has no intermediate_size, hidden_act",
    "ibert": "ibert model cannot be distilled",
    "layoutlm": "the cost of a pass cannot be counted",
    "llama": "tokens do not attend to later ones",
    "longformer": "the cost of a pass cannot be counted",
    "luke": "tables of other inputs than text",
    "mobilebert": "mobilebert model cannot be distilled",
    "splinter": "no classifier of it",
    "squeezebert": "embedding_size",
    "t5": "has no intermediate_size",
    "vit": "no encoder",
    "wav2vec2": "no classifier of it",
    "xlnet": "has no intermediate_size",
}


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_go_all_the_way_is_refused(family):
    with pytest.raises(ConfigError, match=f"^teacher.path=x: .*{REFUSED[family]}") as caught:
        check_config(transformers.CONFIG_MAPPING[family](), "teacher.path", "x")
    assert str(caught.value).isprintable()


def test_flops_are_the_same_in_inference_mode():
    def config(**values):  # not the same, or its operations would not be counted again
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        return transformers.BertConfig(**sizes, **values)

    usual = count_flops(config(), batch_size=1, length=8)
    with torch.inference_mode():
        assert count_flops(config(hidden_dropout_prob=0.2), batch_size=1, length=8) == usual > 0


def test_a_decoder_by_setting_is_refused():
    with pytest.raises(ConfigError, match="tokens do not attend to later ones"):
        check_config(config_of("bert", is_decoder=True), "teacher.path", "x")


def test_a_family_that_is_unlike_bert_and_in_no_table_is_refused(monkeypatch):
    monkeypatch.delitem(FAMILIES, "roberta")
    with pytest.raises(ConfigError, match="it does not take as many positions as a BERT"):
        check_config(config_of("roberta", initializer_range=0.011), "teacher.path", "x")
    monkeypatch.delitem(FAMILIES, "nomic_bert")
    with pytest.raises(ConfigError, match="its layers and embeddings are not where a BERT's are"):
        check_config(config_of("nomic_bert", initializer_range=0.011), "teacher.path", "x")


def test_five_values_that_a_family_does_not_take_together_are_refused():
    with pytest.raises(ConfigError, match=r"^architecture=\[2, 8, 24, 20, relu\]: not of a roformer model"):
        check_architecture(student_config(config_of("roformer"), Architecture(2, 8, 24, 20, "relu")))


def test_batches_are_not_padded_beyond_the_longest_row_allowed():
    rows = [{"input_ids": torch.arange(length)} for length in (13, 4)]
    assert PadCollator(0)(rows)["input_ids"].shape == (2, 16)
    assert PadCollator(0, 13)(rows)["input_ids"].shape == (2, 13)
    assert PadCollator(0, 40)(rows)["input_ids"].shape == (2, 16)


# -- types of numbers


@pytest.fixture(scope="module", params=["float16", "bfloat16"])
def half(request, teacher, tmp_path_factory):
    """A classifier stored in half precision."""
    folder = tmp_path_factory.mktemp("half") / request.param
    model = AutoModelForSequenceClassification.from_pretrained(teacher, num_labels=3)
    model.to(getattr(torch, request.param)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(teacher).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == request.param
    return str(folder)


MADE = {
    "classifier": lambda path: load_classifier(path, 3)[0],
    "random classifier": lambda path: load_classifier(path, 3, random=True)[0],
    "encoder": load_encoder,
    "teacher's latency": lambda path: new_encoder(load_config(path), seed=0),
    "taught classifier": lambda path: Classifier(3).load(path),
    "new classifier": lambda path: Classifier(3).new(load_config(path), 0),
    "student": lambda path: Encoder().new(student_config(load_config(path), STUDENT), 0),
    "masked LM": lambda path: MaskedLM().new(load_config(path), 0),
}


@pytest.mark.parametrize("made", MADE)
def test_a_model_is_in_fp32_whatever_it_was_stored_in(made, half, tmp_path):
    model = MADE[made](half)
    assert {weight.dtype for weight in model.state_dict().values() if weight.is_floating_point()} == {torch.float32}
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"


def test_weights_of_a_half_precision_source_are_taken_over(half):
    model = new_encoder(load_config(half))
    PretrainedWeights(half)(model)
    stored = BertModel.from_pretrained(half, dtype="auto")
    assert stored.dtype != torch.float32
    for name, weight in model.named_parameters():
        assert weight.dtype == torch.float32 and torch.equal(weight, stored.get_parameter(name).float()), name


@pytest.mark.parametrize(("family", "dtype"), [("deberta-v2", torch.float16), ("modernbert", torch.bfloat16)])
@torch.no_grad()
def test_a_teacher_may_be_sharded_in_half_precision_and_have_added_tokens(family, dtype, tmp_path):
    tokenizer = grammar.tokenizer(max_length=32)
    config = config_of(family, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    model = AutoModel.from_config(config).eval()
    tokenizer.add_tokens(["@user", "http"])
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)  # more ids than the tokenizer has
    model.to(dtype).save_pretrained(tmp_path, max_shard_size="8KB")
    tokenizer.save_pretrained(tmp_path)
    assert len([*tmp_path.glob("*.safetensors")]) > 1

    path = str(tmp_path)
    teacher, tokens = load_encoder(path), load_tokenizer(path)
    check_fit(teacher.config, tokens, "teacher.path", texts_per_row=1, max_length=32)
    batch = tokens(["no @user cats", "all big dogs are running"], padding=True, return_tensors="pt")
    assert len(tokens) - 2 in batch["input_ids"] and teacher.config.vocab_size % 64 == 0
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    expected = model.float()(**inputs).last_hidden_state[batch["attention_mask"].bool()]
    last = hidden_state(4)
    torch.testing.assert_close(outputs(teacher, batch, {last})[last], expected, rtol=1e-4, atol=1e-5)
    student = Encoder().new(student_config(teacher.config, STUDENT), seed=0)
    assert student.get_input_embeddings().weight.shape == (teacher.config.vocab_size, 24)
    assert teacher.dtype == student.dtype == torch.float32


def test_dropout_that_a_family_does_not_name_is_noticed(monkeypatch):
    monkeypatch.setattr(DistilBert, "hidden_dropout", ("hidden_dropout_prob",))
    with pytest.raises(ConfigError, match="its dropout probabilities are not called as a BERT's are"):
        check_config(config_of("distilbert", initializer_range=0.012), "teacher.path", "x")

"""The families that differ from BERT, one class each."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig, PreTrainedModel

from kdnas.models.architecture import Architecture
from kdnas.models.families.base import Family, head_size, register


@register("bert", "ernie", "megatron-bert")
class Bert(Family):
    """All is as in `Family`."""

    plain_attention = True


@register("rembert")
class RemBert(Bert):
    """Embeddings of a size of their own, projected within the encoder."""

    embeddings_projection = "encoder.embedding_hidden_mapping_in"


@register("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert")
@register("data2vec-text", "roberta-prelayernorm")
class Roberta(Bert):
    """Positions begin after the padding token's id."""

    positions_after_padding = True

    def first_position(self, config: PreTrainedConfig) -> int:
        return config.pad_token_id + 1


@register("mpnet")
class MPNet(Family):
    """Positions begin after 1, whatever the padding token is; scores have a bias for each distance of two tokens."""

    projections: Mapping[str, str] = {
        "query": "attention.attn.q",
        "key": "attention.attn.k",
        "value": "attention.attn.v",
    }
    roles: Mapping[str, str] = {
        **{"attention_output": "attention.attn.o", "attention_norm": "attention.LayerNorm"},
        **{"intermediate": "intermediate.dense", "output": "output.dense", "output_norm": "output.LayerNorm"},
    }
    attention_bias = "encoder.relative_attention_bias"

    def first_position(self, config: PreTrainedConfig) -> int:
        return 2


@register("electra")
class Electra(Bert):
    """Embeddings of a size of their own, which stays the teacher's, are projected to a different hidden size."""

    embeddings_projection = "embeddings_project"

    def blocks(self, model: PreTrainedModel) -> list[list[nn.Module]]:
        blocks, encoder = super().blocks(model), model.base_model
        if hasattr(encoder, "embeddings_project"):
            blocks[-1].append(encoder.get_submodule("embeddings_project"))
        return blocks


@register("convbert", "roformer")
class OwnAttention(Electra):
    """Embeddings as ELECTRA's, and no modules that give what attention takes (convolutions, rotary positions)."""

    projections: Mapping[str, str] = {}
    roles: Mapping[str, str] = {}
    plain_attention = False


@register("big_bird", "nystromformer")
class SparseAttention(Family):
    """Attention of long rows is approximated."""

    projections: Mapping[str, str] = {}
    roles: Mapping[str, str] = {}


@register("albert")
class Albert(Bert):
    """Layers share their weights in groups: all in one, as a rule. The embeddings' own size stays the teacher's."""

    embeddings_projection = "encoder.embedding_hidden_mapping_in"
    roles: Mapping[str, str] = {}

    def resize(self, config: PreTrainedConfig, architecture: Architecture) -> PreTrainedConfig:
        resized, layers = super().resize(config, architecture), architecture.num_hidden_layers
        apart = 1 < config.num_hidden_groups == config.num_hidden_layers
        resized.num_hidden_groups = layers if apart else min(config.num_hidden_groups, layers)
        return resized

    def share(self, config: PreTrainedConfig, shared: bool) -> None:
        config.num_hidden_groups = 1 if shared else config.num_hidden_layers

    def blocks(self, model: PreTrainedModel) -> list[list[nn.Module]]:
        encoder: Any = model.base_model
        groups = [*encoder.encoder.albert_layer_groups]
        if len(groups) == 1:
            return [[encoder.encoder], [encoder.embeddings]]
        lowest = [encoder.embeddings, encoder.encoder.embedding_hidden_mapping_in]
        return [*([group] for group in reversed(groups)), lowest]

    def apply_head(self, model: PreTrainedModel, states: Tensor) -> Tensor:
        encoder: Any = model.base_model
        if encoder.pooler is None:  # a masked language model
            return super().apply_head(model, states)
        part = model.get_submodule
        pooled = encoder.pooler_activation(encoder.pooler(states[:, 0]))
        return part("classifier")(part("dropout")(pooled))


@register("distilbert")
class DistilBert(Bert):
    """Heads have activations that are no modules; the config class maps the other three of the five values itself."""

    names: Mapping[str, str] = {"intermediate_size": "hidden_dim", "hidden_act": "activation"}
    hidden_dropout = ("dropout",)
    attention_dropout = ("attention_dropout",)
    classifier_dropout = ("seq_classif_dropout", "qa_dropout")
    layers = "transformer.layer"
    projections: Mapping[str, str] = {
        "query": "attention.q_lin",
        "key": "attention.k_lin",
        "value": "attention.v_lin",
    }
    roles: Mapping[str, str] = {
        **{"attention_output": "attention.out_lin", "attention_norm": "sa_layer_norm"},
        **{"intermediate": "ffn.lin1", "output": "ffn.lin2", "output_norm": "output_layer_norm"},
    }

    def apply_head(self, model: PreTrainedModel, states: Tensor) -> Tensor:
        part = model.get_submodule
        if hasattr(model, "vocab_projector"):  # a masked language model
            states = part("activation")(part("vocab_transform")(states))
            return part("vocab_projector")(part("vocab_layer_norm")(states))
        return part("classifier")(part("dropout")(functional.relu(part("pre_classifier")(states[:, 0]))))


@register("deberta-v2")
class DebertaV2(Family):
    """Version 3 too. Scores have terms for relative positions, and some models have absolute positions beside them."""

    derived: Mapping[str, Any] = {
        **Family.derived,
        "pooler_hidden_size": lambda own: own.hidden_size,
        "attention_head_size": head_size,
    }
    usual: Mapping[str, Any] = {
        **{"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
        **{"position_buckets": 256, "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    }
    classifier_dropout = ("pooler_dropout", "cls_dropout")
    embeddings_projection = "embeddings.embed_proj"
    roles: Mapping[str, str] = {}
    projections: Mapping[str, str] = {name: f"attention.self.{name}_proj" for name in ("query", "key", "value")}

    def head_size(self, config: PreTrainedConfig) -> int:
        return getattr(config, "attention_head_size", None) or super().head_size(config)

    def positions(self, config: PreTrainedConfig) -> float:
        return super().positions(config) if config.position_biased_input else math.inf

    def apply_head(self, model: PreTrainedModel, states: Tensor) -> Tensor:
        part: Any = model.get_submodule
        if hasattr(model, "lm_predictions"):  # a masked language model as DeBERTa's own code has it
            return part("lm_predictions")(states, model.get_input_embeddings())
        if hasattr(model, "cls"):
            return part("cls")(states)
        return part("classifier")(part("dropout")(part("pooler")(states)))


@register("deberta")
class Deberta(DebertaV2):
    """Version 1: one projection gives queries, keys and values, and biases are added to it."""

    usual: Mapping[str, Any] = {
        **{"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False},
    }

    def watch(self, layer: nn.Module, keep: Callable[[str, Tensor], None]) -> list[RemovableHandle]:
        attention: Any = layer.get_submodule("attention.self")

        def split(_: nn.Module, __: Any, output: Tensor) -> None:
            heads = output.unflatten(-1, (attention.num_attention_heads, 3, -1))
            query, key, value = (part.flatten(-2) for part in heads.unbind(-2))
            keep("query", query + attention.q_bias)
            keep("key", key)
            keep("value", value + attention.v_bias)

        return [attention.in_proj.register_forward_hook(split)]


@register("nomic_bert", "gte", "jina_embeddings_v3")
class Rotary(Bert):
    """Rotary positions: there is no longest input."""

    layers = "layers"
    roles: Mapping[str, str] = {}

    def positions(self, config: PreTrainedConfig) -> float:
        return math.inf


@register("eurobert", "esmc", "ultrabert")
class EuroBert(Rotary):
    """Word embeddings alone below the first layer."""

    hidden_dropout = ()
    attention_dropout = ("attention_dropout",)
    embeddings = ("embed_tokens",)


@register("modernbert")
class ModernBert(Rotary):
    """Ettin too. Gated feed-forward layers; tokens attend to a window in most layers, in a pattern that repeats."""

    names: Mapping[str, str] = {"hidden_act": "hidden_activation"}
    hidden_dropout = ("mlp_dropout", "embedding_dropout")
    attention_dropout = ("attention_dropout",)

    def resize(self, config: PreTrainedConfig, architecture: Architecture) -> PreTrainedConfig:
        resized, types = super().resize(config, architecture), config.layer_types
        period = next(n for n in range(1, len(types) + 1) if types == [types[i % n] for i in range(len(types))])
        resized.layer_types = [types[i % period] for i in range(architecture.num_hidden_layers)]
        return resized

    def window(self, config: PreTrainedConfig, layer: int) -> int | None:
        return config.sliding_window if config.layer_types[layer - 1] == "sliding_attention" else None

    def averages(self, config: PreTrainedConfig) -> bool:
        return config.classifier_pooling == "mean"

    def apply_head(self, model: PreTrainedModel, states: Tensor) -> Tensor:
        return super().apply_head(model, states[:, 0] if states.dim() == 3 else states)

"""The families that differ from BERT, one class each."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel

from kdnas.models.families.base import Family, register


@register("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert")
@register("data2vec-text", "roberta-prelayernorm", "ibert", "markuplm")
class Roberta(Family):
    """Positions begin after the padding token's id."""

    def first_position(self, config: PreTrainedConfig) -> int:
        return config.pad_token_id + 1


@register("mpnet")
class MPNet(Family):
    """Positions begin after 1, whatever the padding token is."""

    def first_position(self, config: PreTrainedConfig) -> int:
        return 2


@register("electra", "convbert", "roformer")
class Electra(Family):
    """Embeddings of a size of their own, which stays the teacher's, are projected to a different hidden size."""

    def blocks(self, model: PreTrainedModel) -> list[list[nn.Module]]:
        blocks, encoder = super().blocks(model), model.base_model
        if hasattr(encoder, "embeddings_project"):
            blocks[-1].append(encoder.get_submodule("embeddings_project"))
        return blocks


@register("albert")
class Albert(Family):
    """All layers share their weights, in one block with the projection of the embeddings, whose own size stays."""

    def blocks(self, model: PreTrainedModel) -> list[list[nn.Module]]:
        encoder: Any = model.base_model
        return [[encoder.encoder], [encoder.embeddings]]

    def apply_head(self, model: PreTrainedModel, states: Tensor) -> Tensor:
        encoder: Any = model.base_model
        if encoder.pooler is None:  # a masked language model
            return super().apply_head(model, states)
        part = model.get_submodule
        pooled = encoder.pooler_activation(encoder.pooler(states[:, 0]))
        return part("classifier")(part("dropout")(pooled))


@register("distilbert")
class DistilBert(Family):
    """Heads have activations that are no modules; the config class maps the other three of the five values itself."""

    names: Mapping[str, str] = {"intermediate_size": "hidden_dim", "hidden_act": "activation"}
    layers = "transformer.layer"

    def apply_head(self, model: PreTrainedModel, states: Tensor) -> Tensor:
        part = model.get_submodule
        if hasattr(model, "vocab_projector"):  # a masked language model
            states = part("activation")(part("vocab_transform")(states))
            return part("vocab_projector")(part("vocab_layer_norm")(states))
        return part("classifier")(part("dropout")(functional.relu(part("pre_classifier")(states[:, 0]))))


@register("deberta", "deberta-v2")
class Deberta(Family):
    """Version 3 too. Positions are relative, and some models have absolute ones beside them."""

    derived: Mapping[str, Any] = {**Family.derived, "pooler_hidden_size": lambda own: own.hidden_size}

    def positions(self, config: PreTrainedConfig) -> float:
        return super().positions(config) if config.position_biased_input else math.inf


@register("nomic_bert", "gte", "jina_embeddings_v3")
class Rotary(Family):
    """Rotary positions: there is no longest input."""

    layers = "layers"

    def positions(self, config: PreTrainedConfig) -> float:
        return math.inf


@register("eurobert", "esmc", "ultrabert")
class EuroBert(Rotary):
    """Word embeddings alone below the first layer."""

    embeddings = ("embed_tokens",)

"""ALBERT: all layers share their weights; embeddings of a size of their own."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from kdnas.models.families.base import Family, register


@register("albert")
class Albert(Family):
    """The shared layer is one block, with the projection of the embeddings. `embedding_size` stays the teacher's."""

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

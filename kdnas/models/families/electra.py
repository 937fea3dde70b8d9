"""ELECTRA, ConvBERT and RoFormer: embeddings of a size of their own, projected to the hidden size."""

from torch import nn
from transformers import PreTrainedModel

from kdnas.models.families.base import Family, register


@register("electra", "convbert", "roformer")
class Electra(Family):
    """A projection follows the embeddings where the two sizes differ. `embedding_size` stays the teacher's."""

    def blocks(self, model: PreTrainedModel) -> list[list[nn.Module]]:
        blocks, encoder = super().blocks(model), model.base_model
        if hasattr(encoder, "embeddings_project"):
            blocks[-1].append(encoder.get_submodule("embeddings_project"))
        return blocks

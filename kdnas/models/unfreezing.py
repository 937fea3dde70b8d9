"""The order in which a classifier's training unfreezes its parameters."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from kdnas.models.families import family_of


def unfreezing_groups(model: PreTrainedModel) -> list[list[nn.Parameter]]:
    """Returns a model's parameters top-down: the head, each layer from the last to the first, the embeddings.

    Layers that share their weights (ALBERT's) are one group.
    """
    blocks = family_of(model.config).blocks(model)
    below = [[parameter for part in block for parameter in part.parameters()] for block in blocks]
    taken = {id(parameter) for group in below for parameter in group}
    return [[parameter for parameter in model.parameters() if id(parameter) not in taken], *below]

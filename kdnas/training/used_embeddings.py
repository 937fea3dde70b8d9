"""Trains only those rows of the word embeddings that occur in the data.

They hold most of a small student's parameters; a row that does not occur has no gradient, only weight decay.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

WORTH = 0.8
"""The share of used rows from which on the whole table is trained."""


class UsedRows(nn.Module):
    """Replaces an embedding by the rows of the `used` ids, sorted; its state dict is that of the whole table."""

    table: nn.Embedding
    places: Tensor
    rest: Tensor

    def __init__(self, table: nn.Embedding, used: Tensor) -> None:
        super().__init__()
        self.__dict__["table"] = table  # not a submodule: its weights are `rows` and `rest` now
        self.used = used
        self.rows = nn.Parameter(table.weight.detach()[used].clone())
        places = torch.zeros(table.num_embeddings, dtype=torch.long)
        places[used] = torch.arange(len(used))
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("rest", table.weight.detach(), persistent=False)
        padding = table.padding_idx
        self.padding = int(places[padding]) if padding is not None and bool((used == padding).any()) else None
        self.register_state_dict_post_hook(_spread)
        self.register_load_state_dict_pre_hook(_gather)

    def forward(self, ids: Tensor) -> Tensor:
        return functional.embedding(self.places[ids], self.rows, self.padding)

    def whole(self) -> Tensor:
        weight = self.rest.clone()
        weight[self.used.to(weight.device)] = self.rows.detach().to(weight.device)
        return weight

    def restored(self) -> nn.Embedding:
        self.table.weight.data = self.whole()
        return self.table


def _spread(module: UsedRows, state: dict[str, Any], prefix: str, _: Any) -> None:
    del state[f"{prefix}rows"]
    state[f"{prefix}weight"] = module.whole()


def _gather(module: UsedRows, state: dict[str, Any], prefix: str, *_: Any) -> None:
    weight = state.pop(f"{prefix}weight")
    module.rest = weight.to(module.rest)
    state[f"{prefix}rows"] = weight[module.used.to(weight.device)]


def train_used_rows(model: PreTrainedModel, used: Tensor) -> None:
    """Trains only the used rows of a model's word embeddings, if these are few and no output layer shares the table."""
    table = model.get_input_embeddings()
    tied = model.get_output_embeddings() is not None
    if not tied and isinstance(table, nn.Embedding) and len(used) < WORTH * table.num_embeddings:
        model.set_input_embeddings(UsedRows(table, used))


def restore_tables(model: PreTrainedModel) -> None:
    """Undoes `train_used_rows`: gives a model its whole table of word embeddings back."""
    rows = model.get_input_embeddings()
    if isinstance(rows, UsedRows):
        model.set_input_embeddings(rows.restored())

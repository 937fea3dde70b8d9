"""PyTorch as a runtime."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from kdnas.costs.devices import DEVICES
from kdnas.costs.protocol import Protocol
from kdnas.costs.runtimes.base import Runtime
from kdnas.costs.targets import Target


class Torch(Runtime):
    """PyTorch in eager mode: a Hugging Face model as it is, without conversion."""

    devices = tuple(DEVICES)

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__}  # ends in +cpu, +cu130 or the like

    def load(self, model: PreTrainedModel, target: Target, protocol: Protocol) -> Callable[[], object]:
        synchronize = DEVICES[target.device].synchronize
        model = model.eval().to(target.device, dtype=getattr(torch, protocol.dtype))
        tokens = torch.full((protocol.batch_size, protocol.length), 1, dtype=torch.long, device=target.device)
        mask = torch.ones_like(tokens)

        def infer() -> None:
            model(input_ids=tokens, attention_mask=mask)
            synchronize()

        return infer

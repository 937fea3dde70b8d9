"""Runtimes: the libraries that can run a model on a target, and the choice of the one that a target names."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping

import torch
from transformers import PreTrainedModel

from kdnas.base.errors import ConfigError
from kdnas.costs.devices import DEVICES, available_devices
from kdnas.costs.targets import Protocol, Target


class Runtime(ABC):
    """A library that runs models. Targets use it by its name in `latency.runtimes`."""

    devices: Collection[str] = ("cpu",)  # the devices that it runs on
    quantisations: Collection[str] = ()  # the quantisations that it offers

    def available(self) -> bool:
        """Returns whether the library is installed."""
        return True

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Returns the versions of the library, and of what it builds on, by name. They are part of the table's key."""

    @abstractmethod
    def load(self, model: PreTrainedModel, target: Target, protocol: Protocol) -> Callable[[], object]:
        """Brings a model to the target and returns one inference of it, which is called and timed again and again.

        The inference's input has the shape (`protocol.batch_size`, `protocol.length`), without padding. The inference
        uses `protocol.threads` processors and computes in `protocol.dtype`, which is the target's if the target names
        one. It returns when the device has finished. The model is new, with random weights, and may be changed.
        """


def runtime_for(target: Target, runtimes: Mapping[str, Runtime]) -> Runtime:
    """Returns the runtime that a target names; raises a ConfigError if it cannot run there on this machine."""
    devices = available_devices()
    _require(target.device in devices, target, f"not on this machine; it has {', '.join(devices)}")
    installed = [name for name, runtime in runtimes.items() if runtime.available()]
    _require(target.runtime in installed, target, f"no runtime {target.runtime} here; there is {', '.join(installed)}")
    name, runtime = target.runtime, runtimes[target.runtime]
    _require(target.device in runtime.devices, target, f"{name} runs on {', '.join(runtime.devices)}")
    offered = ", ".join(runtime.quantisations) or "none"
    fits = target.quantisation is None or target.quantisation in runtime.quantisations
    _require(fits, target, f"not a quantisation of {name}, which has {offered}")
    return runtime


def _require(fits: bool, target: Target, otherwise: str) -> None:
    if not fits:
        raise ConfigError.of("accelerators", f"={target}: {otherwise}")


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

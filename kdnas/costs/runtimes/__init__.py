"""Runtimes: the libraries that can run a model on a target."""

from kdnas.costs.runtimes.base import Runtime, runtime_for
from kdnas.costs.runtimes.torch import Torch

__all__ = ["Runtime", "Torch", "runtime_for"]

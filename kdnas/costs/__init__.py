"""The costs of models: parameters, FLOPs and latencies, how a latency is measured, and the table that stores it."""

from kdnas.costs.cost import Cost, Latency
from kdnas.costs.cost_model import CostModel
from kdnas.costs.runtimes import Runtime, Torch
from kdnas.costs.targets import Protocol, Target

__all__ = ["Cost", "CostModel", "Latency", "Protocol", "Runtime", "Target", "Torch"]

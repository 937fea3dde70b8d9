"""Inference latency: how it is measured, and the table that stores it."""

from kdnas.costs.accelerators import ACCELERATORS, check_accelerators, device_name
from kdnas.costs.measure import Protocol, measure_config
from kdnas.costs.table import LatencyTable

__all__ = ["ACCELERATORS", "LatencyTable", "Protocol", "check_accelerators", "device_name", "measure_config"]

"""The report on proxies: how well each ranks architectures, and the smallest that ranks them well enough."""

from kdnas.reports.proxy.reading import compare
from kdnas.reports.proxy.results import Comparison
from kdnas.reports.proxy.text import answer, drawn, write

__all__ = ["Comparison", "answer", "compare", "drawn", "write"]

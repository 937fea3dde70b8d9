"""kdnas: search for the student architecture that best distils a given teacher.

From Python: `kdnas.run_search`, `kdnas.distil` and `kdnas.open_search`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdnas.app.functions import distil, run_search
    from kdnas.reports.table import open_search

__version__ = "0.1.0"
__all__ = ["distil", "open_search", "run_search"]
_MODULES = {"distil": "kdnas.app.functions", "run_search": "kdnas.app.functions", "open_search": "kdnas.reports.table"}


def __getattr__(name: str) -> Any:
    """Imports a function when it is first used, so that `import kdnas` alone stays fast."""
    if name not in _MODULES:
        raise AttributeError(f"module 'kdnas' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)

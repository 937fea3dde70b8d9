"""A search folder as a pandas table, for notebooks and other programs."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from kdnas.base.errors import require
from kdnas.reports.results import Results
from kdnas.reports.table import candidates, whole_numbers
from kdnas.search.journal import JOURNAL, open_storage
from kdnas.search.study import Study


def open_search(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """Reads the candidates of a search, finished or not, from its folder.

    Args:
        folder: the search folder (`search.dir`).

    Returns:
        A row a candidate, the best first, failed ones last. Among the columns: `rank`, `trial`, `state` (finished or
        failed) and `reason`; the architecture's `num_hidden_layers`, `num_attention_heads`, `hidden_size`,
        `intermediate_size` and `hidden_act`; `parameters (M)` and `FLOPs (G)`; `held-out loss` and the other held-out
        metrics; `latency DEVICE (ms)` and its `spread`, `busy` and `speed-up` for each device; `reward`, `chosen by`,
        `episode`; and for those distilled in full `full held-out loss` (and so on), `full reward` and `export`, the
        folder of the exported model. Unknown values are NaN.

    Raises:
        ConfigError: the folder holds no search, or its journal is damaged.
    """
    path = Path(folder)
    require((path / JOURNAL).is_file(), "folder", folder, f"a search folder; it has no {JOURNAL}")
    storage = open_storage(path)
    return whole_numbers(candidates(Results.of(path.name, Study(storage), Study(storage, "full"))))

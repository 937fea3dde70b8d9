"""Takes an architecture from a finished search (`architecture=from_search`)."""

from __future__ import annotations

from pathlib import Path

from kdnas.base.errors import ConfigError, require
from kdnas.models.architecture import Architecture
from kdnas.search.journal import JOURNAL, open_storage
from kdnas.search.study import Study


def ranked_architecture(search: str, rank: int = 1, trial: int | None = None) -> Architecture:
    """Returns the architecture with a final rank in a finished search, 1 for the best candidate.

    Args:
        search: the search's folder.
        trial: the number of a finished candidate, in place of a rank.

    Raises:
        ConfigError: the folder holds no search, an unfinished one, or no such candidate.
    """
    folder = Path(search)
    if not (folder / JOURNAL).is_file():
        raise ConfigError(f"search.dir={search}: holds no search (no {JOURNAL})")
    study = Study(open_storage(folder))
    if study.order is None:
        raise ConfigError(f"search.dir={search}: this search has not finished; run the same command again to go on")
    if trial is None:
        fits = isinstance(rank, int) and 1 <= rank <= len(study.order)
        require(fits, "rank", rank, f"from 1 to {len(study.order)}, the candidates of {search}")
        trial = study.order[rank - 1]
    require(trial in study.order, "trial", trial, f"a finished candidate of {search}")
    return study.architecture(trial)

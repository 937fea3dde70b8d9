"""Opens the studies of a search, and checks that the trials in them were run with the search's settings."""

import logging
import uuid
from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig

from kdnas.app.kinds import changed_keys, staged
from kdnas.app.search_folder import set_aside
from kdnas.base.identity import COMPARED, TRAINING, identity, require_same, sources, stamp
from kdnas.base.run_folder import read_prepared, write_prepared
from kdnas.search.job import Job
from kdnas.search.journal import open_storage
from kdnas.search.study import Study

log = logging.getLogger(__name__)
OTHER_SEARCH = ", and its observations would not compare; use another search.dir, or search.fresh=true to start over"
"""The end of the error about a folder that holds a search with another setting."""


def open_studies(cfg: DictConfig, folder: Path, kinds: Iterable[str]) -> dict[str, Study]:
    """Opens the studies of kinds of jobs in a search's folder, whose prepare job has ended.

    A ConfigError refuses candidates that were scored with other settings; such trials of other kinds do not count.
    """
    prepared = read_prepared(folder / "prepare")
    if cfg.search.fresh:
        set_aside(folder)
        (folder / "prepare").mkdir(exist_ok=True)
        write_prepared(folder / "prepare", prepared)
    studies = {kind: Study(open_storage(folder), kind) for kind in kinds}
    mini, configs = studies["mini"], {kind: staged(cfg, Job(kind)) for kind in studies}
    rows, precision = prepared.pop("rows"), mini.precision or prepared["precision"]
    for config in configs.values():
        if config.trainer.precision == "auto":
            config.trainer.precision = precision
    settings = identity(configs["mini"], rows, COMPARED)
    if mini.settings is None:
        mini.settings = settings
    else:
        require_same(settings, mini.settings, "the search in this folder was made", OTHER_SEARCH)
    files = stamp(sources(configs["mini"]))
    name = mini.search or f"search-{uuid.uuid4().hex[:8]}"  # never a number
    for kind, study in studies.items():
        here = stamp(sources(configs[kind]))
        own = {key.partition(".")[0] for key in changed_keys(cfg, kind)} - {"paths"}
        settings = identity(configs[kind], rows if here == files else here, [*TRAINING, *own.difference(TRAINING)])
        if study is not mini and study.count_only(settings):  # the prepare job has read no other rows
            log.info("the trials of `%s` are run anew: their settings have changed", kind)
        study.search = name  # jobs of a search moved aside cannot report to this one
        study.store_prepared(prepared)
    return studies

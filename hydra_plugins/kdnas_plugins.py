"""The launchers and sweepers of `kdnas.app`, and a search path plugin, in the package that Hydra searches."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.plugins.search_path_plugin import SearchPathPlugin

from kdnas.app import multirun, proxy, sweeper
from kdnas.app.launchers import pool, queue


class KDNASSweeper(sweeper.KDNASSweeper):
    """`hydra/sweeper=kdnas`."""


class ProxySweeper(proxy.ProxySweeper):
    """`hydra/sweeper=proxy`."""


class JobsSweeper(multirun.JobsSweeper):
    """`hydra/sweeper=jobs`."""


class PoolLauncher(pool.PoolLauncher):
    """`hydra/launcher=joblib`."""


class LocalLauncher(queue.LocalLauncher):
    """`hydra/launcher=local`."""


class SlurmLauncher(queue.SlurmLauncher):
    """`hydra/launcher=slurm`."""


class OwnLaunchers(SearchPathPlugin):
    """Removes the schema that joblib's plugin registers as `hydra/launcher/joblib`.

    `conf/hydra/launcher/joblib.yaml` replaces it, and Hydra would warn at each start that it validates by the schema.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        ConfigStore.instance().repo["hydra"]["launcher"].pop("joblib.yaml", None)

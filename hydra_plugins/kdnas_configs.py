"""A search path plugin, which Hydra calls once it has found all plugins."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.plugins.search_path_plugin import SearchPathPlugin


class OwnLaunchers(SearchPathPlugin):
    """Removes the schema that joblib's plugin registers as `hydra/launcher/joblib`.

    `conf/hydra/launcher/joblib.yaml` replaces it, and Hydra would warn at each start that it validates by the schema.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        ConfigStore.instance().repo["hydra"]["launcher"].pop("joblib.yaml", None)

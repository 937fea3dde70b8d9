"""Where Hydra looks for what changes its search path, once it has found all plugins."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.plugins.search_path_plugin import SearchPathPlugin


class OwnLaunchers(SearchPathPlugin):
    """Lets `hydra/launcher=joblib` be `conf/hydra/launcher/joblib.yaml` alone.

    joblib's own plugin registers a schema of that name, and Hydra would warn at each start that it checks by it.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        ConfigStore.instance().repo["hydra"]["launcher"].pop("joblib.yaml", None)

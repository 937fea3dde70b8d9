"""The commands that a search prints run as they are printed."""

import shlex

import pytest
from hydra import compose, initialize_config_dir
from hydra.conf import ConfigSourceInfo
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from kdnas.app.suggestions import command, fine_tuning
from kdnas.base.config import CONF


@pytest.fixture(autouse=True)
def configs():
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def searched(*overrides, sources=()):
    config = compose("search", list(overrides), return_hydra_config=True)
    OmegaConf.set_readonly(config.hydra, False)
    config.hydra.runtime.config_sources += [ConfigSourceInfo(str(path), "file", kind) for kind, path in sources]
    return config


def composed(words):
    """The config of a printed command, read back through a shell."""
    line = shlex.split(shlex.join(words))
    assert line[:2] == ["python", "train.py"]
    return compose("train", [*line[2:], "checkpoint=x", "paths.output=y"])


@pytest.mark.parametrize("task", ["mnli", "sst2", "mrpc"])
def test_the_task_to_fine_tune_on_is_the_searchs_own(task):
    config = searched("+experiment=mnli", f"task={task}", "teacher.path=t")
    words = fine_tuning(config, config.hydra)
    assert f"task={task}" in words
    tuned = composed(words)
    assert (tuned.task.name, tuned.task.num_labels) == (config.task.name, config.task.num_labels)
    assert dict(tuned.data.also or {}) == dict(config.data.also or {})


def test_settings_of_the_data_and_the_task_are_written_out_and_quoted():
    given = ["task.num_labels=5", "data.path='my data, really'", "data.held_out=70", "+task.extra=[1,2]"]
    config = searched("+experiment=mnli", "task=rte", "teacher.path=t", "data.proxy=0.1", "paths.runs=o", *given)
    words = fine_tuning(config, config.hydra)
    tuned = composed(words)
    assert (tuned.task.num_labels, tuned.data.path, tuned.data.held_out) == (5, "my data, really", 70)
    assert list(tuned.task.extra) == [1, 2] and tuned.paths.runs == "o"
    assert not any(word.startswith("data.proxy") for word in words)


def test_a_search_without_a_task_suggests_the_one_of_its_config():
    config = searched("+experiment=demo")
    assert fine_tuning(config, config.hydra)[-2:] == ["data=demo", "task=demo"]
    assert composed(fine_tuning(config, config.hydra)).task.name == "demo"


def test_folders_of_configs_are_given_again(tmp_path):
    config = searched("+experiment=demo", sources=[("command-line", tmp_path / "my configs")])
    assert command(config.hydra) == ["python", "train.py", "--config-dir", str(tmp_path / "my configs")]
    (main,) = (source for source in config.hydra.runtime.config_sources if source.provider == "main")
    main.path = "/elsewhere"
    assert command(config.hydra)[2:4] == ["--config-path", "/elsewhere"]

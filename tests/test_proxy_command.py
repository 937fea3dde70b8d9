"""`python evaluate.py proxy` through the real command, in this process, at the smallest size that is the real thing."""

import shlex
import sys

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from scipy.stats import kendalltau
from test_proxy import SPACE

from kdnas.app import command
from kdnas.app.kinds import staged
from kdnas.app.proxy_settings import architectures_of, check_architectures, criterion_of, fidelities_of
from kdnas.base.config import CONF
from kdnas.base.errors import ConfigError
from kdnas.search.fidelity import Proxy
from kdnas.search.job import Job
from kdnas.search.journal import open_storage
from kdnas.search.proxy_grid import trained
from kdnas.search.spread import members
from kdnas.search.study import Study

TINY = [
    "+experiment=demo",
    "student/init=random",
    "data.rows=64",
    "data.held_out=16",
    "trainer.max_epochs=2",
    "++teacher.prepare=null",
]
TINY += ["space.num_hidden_layers=[1,2]", "space.hidden_size=[16,32]", "space.num_attention_heads=[2]"]
TINY += ["space.intermediate_size=[32,64]", "latency.accelerators=[cpu]", "latency.repeats=1", "latency.runs=1"]
TINY += ["latency.patience=0", "trainer.accelerator=cpu", "trainer.precision=32-true"]
GRID = ["search.gang=4", "proxy.architectures=4", "proxy.epochs=[2]"]


GIVEN = "proxy.architectures="
FORM = "must be a number, or a list of names or of five values, as {num_hidden_layers:6,"


@pytest.fixture(scope="module")
def evaluate(teacher, tmp_path_factory):
    """Runs `evaluate.py proxy` with further words; returns its folder."""
    runs = tmp_path_factory.mktemp("proxy")

    def run(*words):
        GlobalHydra.instance().clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["evaluate.py"])
            command.evaluate.run(["proxy", *TINY, f"teacher.path={teacher}", f"paths.runs={runs}", *words])
        return runs / "proxy/demo"

    return run


def composed(name, *words):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(words))


def written(layers, activation="gelu"):
    sizes = f"num_hidden_layers:{layers},num_attention_heads:2,hidden_size:16,intermediate_size:32"
    return f"{{{sizes},hidden_act:{activation}}}"


def jobs(folder):
    """The time at which each job last wrote its results."""
    return {str(path.parent.relative_to(folder)): path.stat().st_mtime_ns for path in folder.glob("*/*/results.json")}


def losses(seen):
    return {one: found.metrics["loss"] for one, found in seen.items()}


def test_an_evaluation_and_its_continuation(evaluate, capsys):
    folder = evaluate(*GRID, "proxy.data=[1.0]")
    first = jobs(folder)
    assert first.keys() == {f"{kind}/0000+0001+0002+0003" for kind in ("mini", "full")}
    capsys.readouterr()
    own = ["data.proxy=0.7", "search.stages.mini.trainer.max_epochs=3"]  # which the grid replaces
    evaluate(*GRID, "proxy.data=[0.5,1.0]", "proxy.threshold=1", *own)
    assert jobs(folder) == first | {"mini/0004+0005+0006+0007": jobs(folder)["mini/0004+0005+0006+0007"]}
    printed = capsys.readouterr().out
    storage = open_storage(folder)
    mini, full = Study(storage), Study(storage, "full")
    ended = trained(full)
    assert len(ended) == 4
    assert losses(trained(mini, Proxy(2, 1.0))) == losses(ended)  # as large as the full distillation, and the same

    table, runs = (pd.read_csv(folder / "report" / name) for name in ("proxies.csv", "trainings.csv"))
    assert list(table["data"]) == [0.5, 1.0] and table["recommended"].any() and table["tau quality"][1] == 1
    for row in table.to_dict("records"):
        short = losses(trained(mini, Proxy(row["epochs"], row["data"])))
        tau = kendalltau([short[one] for one in ended], list(losses(ended).values())).statistic
        assert row["tau quality"] == pytest.approx(tau, abs=1e-9)
        own = runs[(runs["training"] == "proxy") & (runs["data"] == row["data"])]
        both = own.merge(runs[runs["training"] == "full"], on="architecture")
        assert len(both) == 4 and both["latency cpu (ms)_x"].equals(both["latency cpu (ms)_y"])
        assert row["tau reward"] == pytest.approx(kendalltau(both["reward_x"], both["reward_y"]).statistic, abs=1e-9)
    for name in ("proxies.md", "tau.png", "rankings.png"):
        assert (folder / "report" / name).stat().st_size > 0 and str(folder / "report" / name) in printed

    told = printed.partition("Search with it:\n")[2].splitlines()[0]
    script, *words = shlex.split(told)[1:]
    search = staged(composed(script.removesuffix(".py"), *words), Job("mini"))
    best = table[table["recommended"]].iloc[0]
    assert (search.trainer.max_epochs, search.data.proxy) == (best["epochs"], best["data"])
    assert search.search.dir != str(folder) and search.search.gang == 4
    assert "data.proxy=0.7: applies to search.py only" in printed


def test_what_the_proxies_of_a_grid_change():
    found = fidelities_of(composed("proxy", *TINY, "proxy.epochs=[1,3]", "proxy.data=[0.5]"))
    assert found == {
        Proxy(epochs, 0.5): {"trainer": {"max_epochs": epochs, "max_steps": -1}, "data": {"proxy": 0.5}}
        for epochs in (1, 3)
    }
    staged = ["objective=xtremedistil", "task=demo", "~objective.normalize", "trainer.max_epochs=null"]
    found = fidelities_of(composed("proxy", *TINY, *staged, "proxy.epochs=[3]", "proxy.data=[0.5]"))
    epochs = {stage: {"epochs": 3} for stage in ("representation", "logits", "labels")}
    assert found == {Proxy(3, 0.5): {"objective": epochs, "data": {"proxy": 0.5}}}


def test_architectures_by_name_by_value_and_of_a_search(tmp_path):
    value = "{num_hidden_layers:1,num_attention_heads:1,hidden_size:8,intermediate_size:9,hidden_act:relu}"
    config = composed("proxy", f"proxy.architectures=[l6_h384,kdnas_v2_arch1,{value},small]")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = list(map(str, architectures_of(config)))
    assert found[:3] == ["[6, 12, 384, 1536, gelu]", "[3, 12, 384, 1024, gelu]", "[1, 1, 8, 9, relu]"]

    study, pool = Study(open_storage(tmp_path)), members(SPACE, 0)[:7]
    for number, one in enumerate(pool):
        study.add(one, {"episode": 0, "origin": "random"})
        if number < 6:  # the last has not finished
            study.optuna.tell(number, 1.0)
    config = composed("proxy", "proxy.architectures=6", f"proxy.search={tmp_path}")
    assert set(architectures_of(config)) == set(pool[:6])
    config.proxy.architectures = 7
    with pytest.raises(
        ConfigError, match=rf"^proxy\.architectures=7: must be at most 6, the architectures of {tmp_path}"
    ):
        check_architectures(config)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("proxy.epochs=[]", "proxy.epochs=[]: must be a list of one or more different values"),
        ("proxy.epochs=3", "proxy.epochs=3: must be a list of"),
        ("proxy.epochs=[1,1]", "proxy.epochs=[1, 1]: must be a list of"),
        ("proxy.epochs=[0]", "proxy.epochs=0: must be a whole number from 1"),
        ("proxy.data=[0.1,1.5]", "proxy.data=1.5: must be above 0 and at most 1"),
        ("proxy.architectures=3", "proxy.architectures=3: must be a whole number from 4"),
        ("proxy.architectures=[small]", "proxy.architectures=['small']: must be 4 or more"),
        ("proxy.architectures=[small,demo,small,demo]", "proxy.architectures=['small', 'demo', 'small', 'demo']: must"),
        ("proxy.architectures=[[3,12,192,768,gelu],small,demo,l6_h384]", f"{GIVEN}[3, 12, 192, 768, 'gelu']: {FORM}"),
        ("proxy.architectures=[3,12,192,768,gelu]", f"{GIVEN}3: {FORM}"),
        ("proxy.architectures=[{hidden_size:8},small,demo,l6_h384]", "proxy.architectures: {'hidden_size': 8}: archi"),
        ("proxy.search=no/such", "proxy.search=no/such: must be a search folder; it has no study.journal"),
        ("proxy.threshold=1.5", "proxy.threshold=1.5: must be from 0 to 1"),
        ("proxy.confidence=95", "proxy.confidence=95: must be above 0 and below 1"),
        ("proxy.resamples=1", "proxy.resamples=1: must be a whole number from 100"),
        ("proxy.by=latency", "proxy.by=latency: must be one of quality, reward"),
    ],
)
def test_bad_settings(word, says):
    config = composed("proxy", *TINY, word)
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(ConfigError) as caught:
        criterion_of(config)
        fidelities_of(config)
        check_architectures(config)
    assert str(caught.value).startswith(says) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("proxy.data=[0]", "proxy.data=0: must be above 0 and at most 1"),
        ("proxy.epochs=1,2", "proxy.epochs=1,2: one evaluation compares all of a list; must be proxy.epochs=[1,2]"),
        (
            "proxy.architectures=[small,demo,l6_h384,nothing]",
            "proxy.architectures=nothing: must be a number, or names of demo, ",
        ),
        ("proxy.architectures=17", "proxy.architectures=17: must be at most 16, the architectures of the space"),
        (f"proxy.architectures=[{written(99)},small,demo,l6_h384]", "proxy.architectures: [99, 2, 16, 32, gelu]: "),
        (
            f"proxy.architectures=[{written(1, 'foo')},small,demo,l6_h384]",
            "proxy.architectures: [1, 2, 16, 32, foo]: architecture.hidden_act=foo: must be one of ",
        ),
        ("proxy.grid=1", "proxy.grid: not a key; there is epochs, data, architectures, "),
        ("architecture=small", "architecture=small: a search chooses the architectures itself; "),
    ],
)
def test_the_command_refuses_in_one_line_and_writes_nothing(evaluate, word, says, tmp_path):
    with pytest.raises(ConfigError) as caught:
        evaluate(word, f"search.dir={tmp_path}/new")
    assert str(caught.value).startswith(says) and "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()

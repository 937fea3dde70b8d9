"""`python evaluate.py proxy` through the real command, in this process, at the smallest size that is the real thing."""

import sys

import pandas as pd
import pytest
from hydra.core.global_hydra import GlobalHydra
from scipy.stats import kendalltau

from kdnas.app import command
from kdnas.base.errors import ConfigError
from kdnas.search.fidelity import Proxy
from kdnas.search.journal import open_storage
from kdnas.search.proxy_grid import trained
from kdnas.search.study import Study

TINY = ["+experiment=demo", "data.rows=128", "data.held_out=32", "trainer.max_epochs=2", "++teacher.prepare=null"]
TINY += ["space.num_hidden_layers=[1,2]", "space.hidden_size=[16,32]", "space.num_attention_heads=[2]"]
TINY += ["space.intermediate_size=[32,64]", "latency.accelerators=[cpu]", "latency.repeats=1", "latency.runs=1"]
TINY += ["latency.patience=0", "trainer.accelerator=cpu", "trainer.precision=32-true"]
GRID = ["search.gang=4", "proxy.architectures=4", "proxy.epochs=[1]"]


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


def jobs(folder):
    """The time at which each job last wrote its results."""
    return {str(path.parent.relative_to(folder)): path.stat().st_mtime_ns for path in folder.glob("*/*/results.json")}


def studies(folder):
    storage = open_storage(folder)
    return Study(storage), Study(storage, "full")


def test_an_evaluation_and_its_continuation(evaluate, capsys):
    folder = evaluate(*GRID, "proxy.data=[0.5]")
    first = jobs(folder)
    assert first.keys() == {f"{kind}/0000+0001+0002+0003" for kind in ("mini", "full")}
    capsys.readouterr()
    assert evaluate(*GRID, "proxy.data=[0.25,0.5]", "proxy.threshold=0.0", "proxy.by=reward") == folder
    assert first.items() <= jobs(folder).items() and len(jobs(folder)) == len(first) + 1
    mini, full = studies(folder)
    assert len(mini.observations) == 8 and len(full.observations) == 4
    printed = capsys.readouterr().out

    table = pd.read_csv(folder / "report/proxies.csv")
    runs = pd.read_csv(folder / "report/trainings.csv")
    ended = trained(full)
    for row in table.to_dict("records"):
        seen = trained(mini, Proxy(row["epochs"], row["data"]))
        assert seen.keys() == ended.keys()
        pairs = [[found[one].metrics["loss"] for one in ended] for found in (seen, ended)]
        assert row["tau quality"] == pytest.approx(kendalltau(*pairs).statistic, abs=1e-9)
        own = runs[(runs["training"] == "proxy") & (runs["data"] == row["data"])]
        rewards = own.merge(runs[runs["training"] == "full"], on="architecture")
        assert list(rewards["latency cpu (ms)_x"]) == list(rewards["latency cpu (ms)_y"])
        tau = kendalltau(rewards["reward_x"], rewards["reward_y"]).statistic
        assert row["tau reward"] == pytest.approx(tau, abs=1e-9)
    for name in ("proxies.md", "tau.png", "rankings.png"):
        assert (folder / "report" / name).stat().st_size > 0 and str(folder / "report" / name) in printed


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["proxy.epochs=[]"], "proxy.epochs=[]: must be a list of one or more different values"),
        (["proxy.epochs=3"], "proxy.epochs=3: must be a list of"),
        (["proxy.epochs=[1,1]"], "proxy.epochs=[1, 1]: must be a list of"),
        (["proxy.epochs=[0]"], "proxy.epochs=0: must be a whole number from 1"),
        (["proxy.data=[0.1,1.5]"], "proxy.data=1.5: must be above 0 and at most 1"),
        (["proxy.threshold=1.5"], "proxy.threshold=1.5: must be from 0 to 1"),
        (["proxy.confidence=95"], "proxy.confidence=95: must be above 0 and below 1"),
        (["proxy.resamples=1"], "proxy.resamples=1: must be a whole number from 100"),
        (["proxy.by=latency"], "proxy.by=latency: must be one of quality, reward"),
        (["proxy.architectures=3"], "proxy.architectures=3: must be a whole number from 4"),
        (["proxy.architectures=17"], "proxy.architectures=17: must be at most 16, the architectures of the space"),
        (["proxy.architectures=[nothing]"], "proxy.architectures=nothing: must be a number, or names of demo, "),
        (["proxy.architectures=[small,l6_h384]"], "proxy.architectures=['small', 'l6_h384']: must be 4 or more"),
        (["proxy.search=no/such"], "proxy.search=no/such: must be a search folder; it has no study.journal"),
        (["proxy.grid=1"], "proxy.grid: not a key; there is epochs, data, architectures, "),
    ],
)
def test_bad_input_is_one_line(evaluate, words, says, tmp_path):
    with pytest.raises(ConfigError) as caught:
        evaluate(*words, f"search.dir={tmp_path}/new")
    assert str(caught.value).startswith(says) and "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()

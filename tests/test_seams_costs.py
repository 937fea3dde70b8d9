"""A runtime from the outside: named in a target, it measures through the cost model, the table and the callback."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from objectives import hidden_states
from test_distiller import CONF
from transformers import AutoConfig

from kdnas.base.config import instantiate
from kdnas.base.errors import ConfigError
from kdnas.callbacks.latency import LatencyBenchmark
from kdnas.costs import Runtime, disturbance
from kdnas.costs.devices import DEVICES
from kdnas.costs.table import read_table
from kdnas.models.architecture import Architecture
from kdnas.modules import StudentDistiller

CLOCK = SimpleNamespace(now=0.0)


class Abacus(Runtime):
    """Moves beads, for 3 ms a layer."""

    def versions(self):
        return {"abacus": "1.0"}

    def load(self, model, target, protocol):
        def infer():
            CLOCK.now += 0.003 * model.config.num_hidden_layers

        return infer


@pytest.fixture
def settings(monkeypatch, tmp_path):
    monkeypatch.setitem(DEVICES, "cpu", replace(DEVICES["cpu"], clock=lambda: CLOCK.now))
    monkeypatch.setattr(disturbance.time, "perf_counter", lambda: CLOCK.now)
    monkeypatch.setattr(disturbance, "getrusage", lambda _: SimpleNamespace(ru_nivcsw=0))
    monkeypatch.setattr(disturbance.OtherPrograms, "disturb", lambda self: False)
    words = ["latency.accelerators=[cpu/abacus]", f"+latency.runtimes.abacus._target_={__name__}.Abacus"]
    with initialize_config_dir(str(CONF), version_base=None):
        return compose("train", [*words, "latency.length=8", f"paths.runs={tmp_path}"]).latency


def test_a_runtime_from_the_outside_measures_teacher_and_students(settings, teacher):
    benchmark = LatencyBenchmark(instantiate(settings))
    module = StudentDistiller(teacher, [Architecture(n, 2, 8, 16, "gelu") for n in (1, 2)], hidden_states())
    benchmark.on_fit_start(SimpleNamespace(is_global_zero=True), module)
    layers = [AutoConfig.from_pretrained(teacher).num_hidden_layers, 1, 2]
    found = [cost.latency["cpu/abacus"].median for cost in (benchmark.teacher, *benchmark.students)]
    assert found == pytest.approx([3.0 * n for n in layers])
    keys = [row["key"] for row in read_table(benchmark.costs.table.path)]
    assert [(key["target"], key["versions"]["abacus"], key["num_hidden_layers"]) for key in keys] == [
        ("cpu/abacus", "1.0", n) for n in layers
    ]


def test_a_runtime_is_refused_where_it_does_not_run(settings, monkeypatch):
    settings.accelerators = ["cpu/abacus-int8"]
    line = "latency.accelerators=cpu/abacus-int8: "
    with pytest.raises(ConfigError, match=f"^{line}not a quantisation of abacus, which has none"):
        instantiate(settings)
    monkeypatch.setattr(Abacus, "available", lambda self: False)
    with pytest.raises(ConfigError, match=f"^{line}no runtime abacus here; there is torch"):
        instantiate(settings)

"""Latencies that are measured beside other programs: none of them is taken for that of a quiet host."""

import json
import logging
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, BertConfig

from kdnas.app.remeasure import correct_costs
from kdnas.base import shared
from kdnas.base.errors import ConfigError
from kdnas.base.host import QuietHost
from kdnas.callbacks.controller import ControllerUpdate
from kdnas.callbacks.latency import LatencyBenchmark
from kdnas.costs import Cost, CostModel, Latency, Protocol, Target, Torch, devices, disturbance, key
from kdnas.costs import cost_model as waiting
from kdnas.costs import measure as measuring
from kdnas.costs import table as tables
from kdnas.models.architecture import Architecture
from kdnas.models.resizing import student_config
from kdnas.search.journal import open_storage
from kdnas.search.study import Study

PROTOCOL = Protocol(length=4, warmup=1, repeats=10, runs=2)
CONFIG = BertConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2, intermediate_size=16)
PAUSE = 60
CPU = Target("cpu")


class Host:
    """A made-up host: inferences of 2 ms each, and other programs that take processors away.

    Attributes:
        waits: the milliseconds that the next inferences wait for a processor, in turn, over and over.
        reported: whether the scheduler counts that as an interruption.
        slower: the factors by which the next inferences are slowed down while they have a processor, over and over.
        others: the processors that other programs use.
    """

    def __init__(self):
        self.waits, self.reported, self.slower, self.others = [0], True, [1], 0.0
        self.now = self.worked = self.used = 0.0
        self.interruptions = self.inferences = 0

    def infer(self, **inputs):
        wait = self.waits[self.inferences % len(self.waits)] / 1e3
        work = 0.002 * self.slower[self.inferences % len(self.slower)]
        self.inferences += 1
        self.worked += work
        self.interruptions += bool(wait) and self.reported
        self.sleep(wait + work)

    def sleep(self, seconds):
        self.now += seconds
        self.used += self.others * seconds

    def busy(self):
        """Six programs on two processors: every inference is interrupted."""
        self.waits, self.others = [40, 50, 60], 2.0

    def quiet(self):
        self.waits, self.slower, self.others = [0], [1], 0.0


class Model(torch.nn.Module):
    def __init__(self, host):
        super().__init__()
        self.host = host

    def forward(self, **inputs):
        self.host.infer(**inputs)


@pytest.fixture
def host(monkeypatch):
    host = Host()
    clock = {"perf_counter": lambda: host.now, "monotonic": lambda: host.now, "sleep": host.sleep}
    for module in (disturbance, waiting):
        monkeypatch.setattr(module, "time", SimpleNamespace(**clock))
    monkeypatch.setattr(disturbance, "getrusage", lambda _: SimpleNamespace(ru_nivcsw=host.interruptions))
    monkeypatch.setattr(disturbance, "time_of_other_programs", lambda: host.used)
    monkeypatch.setattr(disturbance, "cores", lambda: 2)
    monkeypatch.setitem(devices.DEVICES, "cpu", replace(devices.DEVICES["cpu"], clock=lambda: host.worked))
    monkeypatch.setattr(measuring, "new_encoder", lambda *_, **__: Model(host))
    monkeypatch.setattr(shared, "_kept", {})
    return host


def costs_of(path, patience=0, fresh=False):
    costs = CostModel(str(path), ["cpu"], fresh=fresh, **asdict(PROTOCOL))
    costs.patience = patience  # the tests' own models have none
    return costs


@pytest.fixture
def costs(tmp_path):
    return costs_of(tmp_path / "latency.jsonl", PAUSE)


def measured(costs, config=CONFIG):
    return costs.latency(config, CPU)


def measure(protocol=PROTOCOL):
    return measuring.measure(CONFIG, CPU, Torch(), protocol)


def lines(costs):
    path = costs.table.path
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# -- what counts


def test_a_quiet_host_gives_what_an_inference_takes(host):
    assert measure() == Latency(pytest.approx(2.0), pytest.approx(0.0))
    assert host.inferences == 2 * (1 + 10)


@pytest.mark.parametrize("reported", [True, False], ids=["interrupted", "slept off"])
def test_disturbed_inferences_do_not_count(host, reported):
    """Two of five wait for a processor; where the scheduler does not count it, their processor time is too short."""
    host.waits, host.reported = [0, 30, 0, 90, 0], reported
    found = measure()
    assert (found.median, found.spread, found.busy) == (pytest.approx(2.0), pytest.approx(0.0), False)


def test_a_host_that_interrupts_nearly_all_gives_an_estimate_after_a_few_inferences(host):
    """By the wall clock an inference takes 52 ms, 26 times as long as it has a processor."""
    host.busy()
    found = measure()
    assert found.busy and found.median == pytest.approx(2.0)
    assert host.inferences < 10


@pytest.mark.parametrize(("others", "busy"), [(0.1, False), (1.0, False), (1.5, True), (2.0, True)])
def test_programs_that_share_its_core_need_not_interrupt_a_measurement(host, others, busy):
    host.others = others
    assert measure().busy == busy


def test_more_threads_leave_less_room_for_other_programs(host):
    host.others = 1.0
    assert measure(replace(PROTOCOL, threads=2)).busy


def test_a_wide_spread_is_no_latency_even_if_nothing_was_interrupted(host):
    host.slower = [1, 1, 1, 1, 1, 1, 1, 3, 3, 3]
    found = measure()
    assert found.busy and found.spread > 0.25 * found.median


def test_a_device_that_other_programs_use_is_busy(host, monkeypatch):
    for share, busy in ((0.0, False), (0.9, True)):
        used = replace(devices.DEVICES["cpu"], in_use=lambda share=share: share)
        monkeypatch.setitem(devices.DEVICES, "cpu", used)
        assert measure().busy == busy


def test_time_of_other_programs_is_the_hosts_time_without_our_own(monkeypatch, tmp_path):
    """proc(5): user, nice, system, idle, iowait, irq, softirq, steal, guest (part of user), guest_nice."""
    stat = tmp_path / "stat"
    stat.write_text("cpu  1000 200 300 99999 88888 10 20 30 500 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
    monkeypatch.setattr(disturbance, "STAT", stat)
    monkeypatch.setattr(disturbance.os, "sysconf", lambda _: 100)
    monkeypatch.setattr(disturbance, "time", SimpleNamespace(process_time=lambda: 5.0))
    assert disturbance.time_of_other_programs() == pytest.approx(15.6 - 5)
    stat.unlink()
    assert disturbance.time_of_other_programs() == 0  # a system that does not count it


def test_two_threads_of_a_core_are_one_core(monkeypatch, tmp_path):
    for number, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        folder = tmp_path / f"cpu{number}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    monkeypatch.setattr(disturbance, "CORES", tmp_path)
    assert disturbance.cores() == 2


@pytest.mark.parametrize(("script", "share"), [("echo 87", 0.87), ("echo '[N/A]'", 0), ("exit 9", 0), (None, 0)])
def test_the_use_of_a_gpu_is_read_from_its_driver(script, share, monkeypatch, tmp_path):
    if script:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f'#!/bin/sh\n[ "$1" = --id=GPU-12ab ] && {script}\n')
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin" if script else str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(uuid="12ab"))
    assert devices.gpu_in_use(pause=0) == pytest.approx(share)


# -- what is kept


def test_a_busy_hosts_latency_is_not_kept_and_is_measured_again(host, costs):
    host.busy()
    costs.patience = 0
    assert measured(costs).busy and not lines(costs)
    host.quiet()
    found = measured(costs)
    assert found == Latency(pytest.approx(2.0), pytest.approx(0.0)) and len(lines(costs)) == 1
    host.busy()
    assert measured(costs) == found  # from the table, busy or not


def test_a_line_holds_date_and_load(host, costs, monkeypatch):
    monkeypatch.setattr(tables, "load", lambda: 0.123)
    measured(costs)
    (line,) = lines(costs)
    assert line["load"] == 0.12 and line["date"][:2] == "20" and "T" in line["date"]


def test_it_waits_until_the_host_is_quiet_and_lets_others_train_meanwhile(host, costs, monkeypatch, caplog):
    host.busy()
    pauses = []

    def sleep(seconds):
        with QuietHost().busy():  # would wait for ever if the measurement kept the lock
            pauses.append(seconds)
        host.sleep(seconds)
        if len(pauses) == 3:
            host.quiet()

    monkeypatch.setattr(waiting.time, "sleep", sleep)
    with caplog.at_level(logging.INFO):
        assert not measured(costs).busy
    assert pauses == [1, 2, 4]
    assert "the host is busy (load" in caplog.text and "measuring latency again in 4 s" in caplog.text


def test_a_process_waits_for_its_patience_in_all_and_then_tries_once(host, costs, caplog):
    host.busy()
    with caplog.at_level(logging.INFO):
        assert measured(costs).busy
        waited = host.now
        assert PAUSE <= waited < PAUSE + 30
        for layers in (2, 3):
            assert measured(costs, replace_layers(layers)).busy
    assert host.now < waited + 2  # two tries
    assert sum("latencies are estimates" in record.message for record in caplog.records) == 1
    host.quiet()
    assert not measured(costs).busy
    host.busy()
    before = host.now
    assert measured(costs, replace_layers(4)).busy and host.now > before + PAUSE  # it was quiet: it may be again


def replace_layers(layers):
    return BertConfig(num_hidden_layers=layers, hidden_size=8, num_attention_heads=2, intermediate_size=16)


def test_a_wide_line_of_an_earlier_version_is_measured_again(host, costs):
    wide = {"key": key.table_key(CONFIG, CPU, Torch(), PROTOCOL), "median": 64.51, "spread": 32.25}
    costs.table.path.write_text(json.dumps(wide) + "\n")
    assert measured(costs).median == pytest.approx(2.0)
    narrow = {**wide, "spread": 0.5}  # and without a date
    costs.table.path.write_text(json.dumps(narrow) + "\n")
    assert measured(costs) == Latency(64.51, 0.5)


def test_fresh_measures_once_in_a_process_what_the_table_has(host, costs, monkeypatch):
    measured(costs)
    monkeypatch.setattr(shared, "_kept", {})  # by another process
    host.slower = [2]
    fresh = [costs_of(costs.table.path, fresh=True) for _ in range(2)]  # of two candidates
    assert [measured(one).median for one in fresh] == pytest.approx([4.0, 4.0]) and len(lines(costs)) == 2
    assert measured(costs).median == pytest.approx(4.0)  # the last line of a key counts
    host.slower = [3]
    monkeypatch.setattr(shared, "_kept", {})
    assert measured(fresh[0]).median == pytest.approx(6.0)


def test_fresh_uses_no_old_line_on_a_busy_host(host, costs, monkeypatch):
    measured(costs)
    monkeypatch.setattr(shared, "_kept", {})  # by another process
    host.busy()
    fresh = costs_of(costs.table.path, fresh=True)
    assert measured(fresh).busy
    host.quiet()
    assert not measured(fresh).busy and len(lines(costs)) == 2


@pytest.mark.parametrize("value", [-1, "long", float("nan"), None, True])
def test_a_patience_that_is_no_time_is_refused(value, tmp_path):
    with pytest.raises(ConfigError, match="^patience=.*: must be a number of seconds from 0"):
        CostModel(str(tmp_path / "table.jsonl"), ["cpu"], patience=value)


def test_fresh_must_be_true_or_false(tmp_path):
    with pytest.raises(ConfigError, match="^fresh=maybe: must be true or false"):
        CostModel(str(tmp_path / "table.jsonl"), ["cpu"], fresh="maybe")


# -- what a search makes of it


ARCHITECTURE = Architecture(1, 2, 8, 16, "gelu")


def search(folder, config):
    """A study with one running trial, and what a finished training of its student looks like to a callback."""
    study = Study(open_storage(folder))
    study.add(ARCHITECTURE, {"episode": 0, "origin": "random"})
    student = SimpleNamespace(model=SimpleNamespace(config=student_config(config, ARCHITECTURE)))
    module = SimpleNamespace(
        **{"teacher_config": config, "trainees": [student], "architectures": [ARCHITECTURE]},
        **{"results": [{"loss": 0.5}], "diverged": {}, "lost": set()},
    )
    return study, module


def trainer(fn="validate"):
    return SimpleNamespace(is_global_zero=True, sanity_checking=False, state=SimpleNamespace(fn=fn))


def ratio(metrics, cost, teacher):
    return cost.latency["cpu"].median / teacher.latency["cpu"].median


def test_a_reward_is_of_the_quiet_latency_if_there_is_one_when_training_ends(host, teacher, tmp_path):
    study, module = search(tmp_path, AutoConfig.from_pretrained(teacher))
    benchmark = LatencyBenchmark(CostModel(str(tmp_path / "table.jsonl"), ["cpu"], length=4, repeats=10, runs=2))
    update = ControllerUpdate(study, [0], ratio, benchmark)
    host.busy()
    host.slower = [1.5]
    benchmark.on_fit_start(trainer(), module)
    assert benchmark.teacher.busy and benchmark.students[0].busy
    assert "teacher's cost" not in shared._kept
    host.quiet()
    update.on_validation_end(trainer(), module)
    (seen,) = study.observations
    assert not seen.cost.busy and not study.teacher.busy and not study.busy
    assert seen.cost.latency["cpu"].median == study.teacher.latency["cpu"].median == pytest.approx(2.0)
    assert seen.reward == pytest.approx(1.0)


def test_a_busy_search_goes_on_and_is_measured_again_when_it_ends(host, teacher, tmp_path, caplog):
    config = AutoConfig.from_pretrained(teacher)
    study, module = search(tmp_path, config)
    benchmark = LatencyBenchmark(CostModel(str(tmp_path / "table.jsonl"), ["cpu"], length=4, repeats=10, runs=2))
    host.busy()
    host.slower = [1.5]
    benchmark.on_fit_start(trainer(), module)
    ControllerUpdate(study, [0], ratio, benchmark).on_validation_end(trainer(), module)
    assert study.busy and study.observations[0].cost.busy
    correct_costs(study, config, benchmark.costs.cost, ratio)
    assert study.busy  # it still is
    host.quiet()
    with caplog.at_level(logging.INFO):
        correct_costs(study, config, benchmark.costs.cost, ratio)
    (seen,) = Study(open_storage(tmp_path)).observations
    assert not study.busy and seen.cost.latency["cpu"] == Latency(pytest.approx(2.0), pytest.approx(0.0))
    assert seen.reward == pytest.approx(1.0)  # of the quiet latencies, both of which are 2 ms
    assert "takes 2.00 ms on cpu, not 3.00 (the host was busy then); its reward is 1.0000" in caplog.text


def cost(median, busy):
    return Cost(1, 1, {"cpu": Latency(median, 0.1, busy)})


def test_a_study_keeps_the_teachers_first_cost_or_the_first_of_a_quiet_host(tmp_path):
    study = Study(open_storage(tmp_path))
    kept = []
    for one in (cost(5.0, True), cost(9.0, True), cost(3.0, False), cost(4.0, True), cost(2.0, False)):
        study.teacher = one
        kept.append(study.teacher.latency["cpu"].median)
    assert kept == [5.0, 5.0, 3.0, 3.0, 3.0]

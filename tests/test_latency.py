"""Latency: the table, the measurement, what is counted, and the callback."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from objectives import hidden_states
from test_quiet_host import LONG, end, processes, start
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModel, BertConfig, DataCollatorWithPadding, RobertaConfig

from kdnas.base import shared
from kdnas.base.errors import ConfigError
from kdnas.base.host import QuietHost
from kdnas.callbacks.latency import LatencyBenchmark
from kdnas.callbacks.steps import QuietSteps
from kdnas.costs import CostModel, Protocol, Target, Torch, cost_model, disturbance, measure
from kdnas.costs.devices import DEVICES
from kdnas.costs.disturbance import Timing
from kdnas.models.architecture import Architecture
from kdnas.models.counting import count_flops, count_parameters
from kdnas.models.resizing import student_config
from kdnas.modules import StudentDistiller

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

QUICK = Protocol(length=8, warmup=0, repeats=3, runs=2)
CPU = Target("cpu")


@pytest.fixture
def config():
    return BertConfig(
        vocab_size=50,
        num_hidden_layers=2,
        hidden_size=8,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
    )


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Replaces measurements by made-up times; returns a function that counts them in all processes."""
    tally = tmp_path / "tally"

    def made_up(model, target, runtime, protocol):
        with tally.open("a") as file:
            file.write("x")
        times = [1000.0 + tally.stat().st_size * 10 + i for i in range(protocol.repeats)]
        return [Timing(time, time, interrupted=False) for time in times]

    monkeypatch.setattr(measure, "time_run", made_up)
    monkeypatch.setattr(disturbance.OtherPrograms, "disturb", lambda self: False)
    return lambda: tally.stat().st_size if tally.exists() else 0


def costs_of(path, protocol=QUICK):
    return CostModel(str(path), ["cpu"], **asdict(protocol))


# -- the table


def test_a_latency_is_the_median_and_half_the_middle_of_all_runs(config, measured, tmp_path):
    costs = costs_of(tmp_path / "table.jsonl", replace(QUICK, repeats=100))
    found = costs.latency(config, CPU)
    times = np.concatenate([np.arange(1010, 1110), np.arange(1020, 1120)])
    assert found.median == pytest.approx(np.median(times))
    assert found.spread == pytest.approx((np.quantile(times, 0.95) - np.quantile(times, 0.05)) / 2)
    assert costs.latency(config, CPU) == found


def test_a_latency_is_measured_once(config, measured, tmp_path):
    path = tmp_path / "folder" / "table.jsonl"
    first = costs_of(path).latency(config, CPU)
    assert measured() == QUICK.runs
    assert costs_of(path).latency(config, CPU) == first
    assert measured() == QUICK.runs and len(path.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"threads": 2},
        {"length": 9},
        {"batch_size": 2},
        {"dtype": "bfloat16"},
        {"repeats": 4},
        {"num_hidden_layers": 3},
        {"hidden_act": "relu"},
        {"num_attention_heads": 4},
        {"intermediate_size": 17},
        {"hidden_size": 12},
    ],
    ids=str,
)
def test_another_protocol_or_model_is_measured_anew(config, measured, tmp_path, changed):
    first = costs_of(tmp_path / "table.jsonl").latency(config, CPU)
    protocol = replace(QUICK, **{name: value for name, value in changed.items() if hasattr(QUICK, name)})
    for name, value in changed.items():
        if hasattr(config, name):
            setattr(config, name, value)
    assert costs_of(tmp_path / "table.jsonl", protocol).latency(config, CPU).median > first.median
    assert measured() == 2 * QUICK.runs


def test_what_latency_does_not_depend_on_is_not_measured_anew(config, measured, tmp_path):
    costs = costs_of(tmp_path / "table.jsonl")
    costs.latency(config, CPU)
    config.hidden_dropout_prob, config.num_labels, config.name_or_path = 0.3, 7, "elsewhere"
    config.architectures, config.dtype, config.pad_token_id = ["BertForMaskedLM"], "bfloat16", 0
    costs.latency(config, CPU)
    assert measured() == QUICK.runs


def test_a_line_cut_short_is_measured_anew_and_spoils_no_other(config, measured, tmp_path):
    path = tmp_path / "table.jsonl"
    other = replace(QUICK, length=9)
    kept = costs_of(path, other).latency(config, CPU)
    costs_of(path).latency(config, CPU)
    path.write_text(path.read_text()[:-40])
    before = measured()
    assert costs_of(path, other).latency(config, CPU) == kept and measured() == before
    again = costs_of(path).latency(config, CPU)
    assert measured() == before + QUICK.runs
    assert costs_of(path).latency(config, CPU) == again
    assert measured() == before + QUICK.runs  # what was measured after the crash is found again


def test_processes_that_measure_together_agree(config, measured, tmp_path):
    path, together, answers = tmp_path / "table.jsonl", processes.Barrier(3), processes.Queue()

    def ask():
        together.wait(LONG)
        answers.put(costs_of(path).latency(config, CPU))

    asking = [start(ask) for _ in range(3)]
    given = [answers.get(timeout=LONG) for _ in asking]
    end(*asking)
    assert len(set(given)) == 1 and measured() == QUICK.runs


# -- measuring


class Model(torch.nn.Module):
    """Notes how it is called; may fail."""

    def __init__(self, fails=False):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.fails, self.calls = fails, []

    def forward(self, input_ids, attention_mask):
        self.calls.append(
            (torch.get_num_threads(), tuple(input_ids.shape), bool(attention_mask.all()), self.weight.dtype)
        )
        if self.fails:
            raise RuntimeError


@pytest.fixture
def undisturbed(monkeypatch):
    """Makes the host look quiet: no inference is interrupted, and the clocks agree."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(disturbance.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(disturbance, "getrusage", lambda _: SimpleNamespace(ru_nivcsw=0))
    monkeypatch.setitem(DEVICES, "cpu", replace(DEVICES["cpu"], clock=lambda: clock.now))


def test_measuring_follows_the_protocol_and_restores_the_threads(undisturbed):
    model, threads = Model(), torch.get_num_threads()
    protocol = Protocol(batch_size=3, length=7, threads=threads + 2, warmup=4, repeats=6, dtype="bfloat16")
    assert len(measure.time_run(model, CPU, Torch(), protocol)) == 6
    assert model.calls == [(threads + 2, (3, 7), True, torch.bfloat16)] * 10 and not model.training
    assert torch.get_num_threads() == threads


def test_threads_are_restored_when_measuring_fails():
    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError):
        measure.time_run(Model(fails=True), CPU, Torch(), Protocol(threads=threads + 1))
    assert torch.get_num_threads() == threads


def test_a_real_measurement(config, tmp_path):
    path = tmp_path / "table.jsonl"
    found = costs_of(path).latency(config, CPU)
    assert found.median > 0 and found.spread >= 0
    assert found.busy or json.loads(path.read_text())["median"] == found.median


def test_an_input_longer_than_the_model_takes_is_refused(config, tmp_path):
    with pytest.raises(ConfigError, match=r"^length=33: .*32"):
        costs_of(tmp_path / "table.jsonl", replace(QUICK, length=33)).latency(config, CPU)


def test_the_longest_input_of_a_roberta_is_measured(tmp_path):
    """RoBERTa counts positions from the padding index + 1: 34 positions are 32 for tokens."""
    config = RobertaConfig(
        vocab_size=50,
        num_hidden_layers=1,
        hidden_size=8,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=34,
    )
    assert costs_of(tmp_path / "table.jsonl", replace(QUICK, length=32)).latency(config, CPU).median > 0
    with pytest.raises(ConfigError, match="^length=33: "):
        costs_of(tmp_path / "table.jsonl", replace(QUICK, length=33)).protocol.check(config)


@pytest.mark.parametrize("name", ["batch_size", "length", "threads", "repeats", "runs"])
def test_a_protocol_with_a_zero_is_refused(name):
    with pytest.raises(ConfigError, match=f"^{name}=0: "):
        Protocol(**{name: 0})


def test_a_dtype_that_torch_does_not_know_is_refused():
    with pytest.raises(ConfigError, match=r"^dtype=float31: .*bfloat16"):
        Protocol(dtype="float31")


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("cpu", Target("cpu", "torch", None, None)),
        ("cuda/bf16", Target("cuda", "torch", "bf16", None)),
        ("cpu/onnx", Target("cpu", "onnx", None, None)),
        ("cpu/onnx-int8", Target("cpu", "onnx", None, "int8")),
        ("cuda/trt-fp16-int8", Target("cuda", "trt", "fp16", "int8")),
    ],
)
def test_a_target_is_read_from_its_text(text, target):
    assert Target.of(text) == target and str(target) == text


def test_a_target_runs_in_the_dtype_that_it_names(undisturbed):
    protocol, model = Protocol(length=7, warmup=0, repeats=1), Model()
    measure.time_run(model, CPU, Torch(), protocol.on(Target.of("cpu/bf16")))
    measure.time_run(model, CPU, Torch(), protocol.on(CPU))
    assert [call[-1] for call in model.calls] == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("tpu", "not on this machine; it has cpu"),
        ("CPU", "not on this machine; it has cpu"),
        ("xpu:0", "not on this machine; it has cpu"),
        ("cpu/onnx", "no runtime onnx here; there is torch"),
        ("cpu/", "must be as cpu, cuda/bf16 or cpu/onnx-int8"),
        ("cpu/int8", "not a quantisation of torch, which has none"),
        ("cpu/bf16-fp16", "must be as cpu, cuda/bf16 or cpu/onnx-int8"),
    ],
)
def test_a_target_that_is_not_there_is_refused_with_those_that_are(tmp_path, name, why):
    with pytest.raises(ConfigError, match=f"^accelerators={name}: {why}"):
        CostModel(str(tmp_path / "table.jsonl"), ["cpu", name])


def test_no_target_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"^accelerators=\[\]"):
        CostModel(str(tmp_path / "table.jsonl"), [])


# -- the callback


class Probed(StudentDistiller):
    """Notes at each step whether another process could measure; may fail at the last one."""

    fails = False

    def training_step(self, batch, index):
        self.free.append(can_measure())
        if self.fails and index == 2:
            raise ZeroDivisionError
        return super().training_step(batch, index)

    def validation_step(self, batch, index):
        self.free.append(can_measure())
        super().validation_step(batch, index)


def can_measure():
    got = processes.Event()

    def measure():
        with QuietHost().quiet():
            got.set()

    process = start(measure)
    free = got.wait(0.3)
    process.kill()
    process.join(LONG)
    return free


@pytest.mark.parametrize("fails", [False, True])
def test_a_fit_measures_before_it_trains_and_keeps_measurements_out_of_its_steps(teacher, measured, tmp_path, fails):
    architecture = Architecture(1, 2, 8, 16, "gelu")
    module = Probed(teacher, [architecture], hidden_states())
    module.fails, module.free = fails, []
    rows = [module.tokenizer("all dogs are running")] * 3
    loader = DataLoader(rows, batch_size=1, collate_fn=DataCollatorWithPadding(module.tokenizer))
    benchmark = LatencyBenchmark(CostModel(str(tmp_path / "table.jsonl"), ["cpu"], length=8, repeats=3, runs=2))
    run = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        logger=False,
        callbacks=[benchmark, QuietSteps()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    if fails:
        with pytest.raises(ZeroDivisionError):
            run.fit(module, loader, loader)
    else:
        run.fit(module, loader, loader)
    assert module.free == [False] * (3 if fails else 4)
    assert can_measure()
    # made-up times: the first model's two runs give 1010 1011 1012 1020 1021 1022, the second's 1030 ... 1042
    assert benchmark.teacher.latency["cpu"].median == 1016 and benchmark.students[0].latency["cpu"].median == 1036
    teacher_config = AutoConfig.from_pretrained(teacher)
    for cost, own in zip((benchmark.teacher, benchmark.students[0]), (teacher_config, architecture), strict=True):
        own = student_config(teacher_config, own) if own is architecture else own
        model = AutoModel.from_config(own)
        encoder = [p for name, p in model.named_parameters() if not name.startswith("pooler.")]
        assert cost.parameters == sum(p.numel() for p in encoder)
        assert cost.flops == flops(own, 1, 8)


def test_the_teachers_cost_is_found_once_for_all_candidates_of_a_process(teacher, measured, tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "_kept", {})
    counted = []

    def flops_of(config, *_):
        counted.append(config.num_hidden_layers)
        return 1

    monkeypatch.setattr(cost_model, "count_flops", flops_of)
    rank_zero = SimpleNamespace(is_global_zero=True)
    for layers, length in ((1, 8), (2, 8), (3, 8), (3, 16)):  # the last is asked for other latencies
        module = StudentDistiller(teacher, [Architecture(layers, 2, 8, 16, "gelu")], hidden_states())
        costs = CostModel(str(tmp_path / "table.jsonl"), ["cpu"], length=length, repeats=1, runs=1)
        benchmark = LatencyBenchmark(costs)
        benchmark.on_fit_start(rank_zero, module)
        assert benchmark.teacher.parameters > benchmark.students[0].parameters
    own = AutoConfig.from_pretrained(teacher).num_hidden_layers
    assert counted == [own, 1, 2, 3, own, 3]


# -- counting


def flops(config, batch, length):
    """Two for each multiply-add of every matrix product: four projections, Q K^T, A V, and the FFN's two."""
    hidden, ffn = config.hidden_size, config.intermediate_size
    layer = 4 * length * hidden * hidden + 2 * length * length * hidden + 2 * length * hidden * ffn
    return 2 * batch * config.num_hidden_layers * layer


@pytest.mark.parametrize(
    ("layers", "heads", "hidden", "ffn", "batch", "length"),
    [(2, 2, 8, 16, 1, 8), (3, 4, 12, 50, 4, 31), (1, 1, 20, 7, 2, 1)],
)
def test_flops_are_those_of_all_matrix_products(layers, heads, hidden, ffn, batch, length):
    sizes = {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "vocab_size": 50,
    }
    for config in (BertConfig(**sizes), RobertaConfig(**sizes)):
        assert count_flops(config, batch, length) == flops(config, batch, length)


@pytest.mark.parametrize("path", ["teacher", "roberta_teacher"])
def test_parameters_are_those_of_a_built_model_without_its_pooler(path, request):
    config = AutoConfig.from_pretrained(request.getfixturevalue(path))
    for architecture in (Architecture(1, 2, 8, 16, "gelu"), Architecture(3, 4, 20, 50, "relu")):
        own = student_config(config, architecture)
        built = AutoModel.from_config(own, add_pooling_layer=False)
        assert count_parameters(own) == sum(parameter.numel() for parameter in built.parameters())

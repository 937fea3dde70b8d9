"""The key of the latency table, its listing, and the folder that the processes of a host share."""

import json
import os
import runpy
import sys

import pytest
import torch
from transformers import AlbertConfig, AutoConfig, AutoModel, BertConfig, ElectraConfig

from kdnas.base import host
from kdnas.base.errors import ConfigError
from kdnas.costs import Protocol, Target, Torch, devices, key
from kdnas.models.architecture import Architecture
from kdnas.models.resizing import student_config

PROTOCOL = Protocol(length=8)
SIZES = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}


def key_of(config, protocol=PROTOCOL, target="cpu", runtime=None):
    found = key.table_key(config, Target.of(target), runtime or Torch(), protocol)
    assert json.loads(json.dumps(found)) == found  # or it would never be found again
    return found


@pytest.mark.parametrize(
    ("family", "changed"),
    [
        (AlbertConfig, {"embedding_size": 64}),
        (AlbertConfig, {"num_hidden_groups": 2}),
        (AlbertConfig, {"inner_group_num": 2}),
        (ElectraConfig, {"embedding_size": 64}),
        (BertConfig, {"max_position_embeddings": 64}),
        (BertConfig, {"type_vocab_size": 1}),
        (BertConfig, {"vocab_size": 99}),
        (BertConfig, {"chunk_size_feed_forward": 4}),
        (BertConfig, {"num_hidden_layers": 3}),
        (BertConfig, {"hidden_act": "relu"}),
        (BertConfig, {"attn_implementation": "eager"}),
    ],
    ids=str,
)
def test_whatever_a_model_is_built_from_is_in_the_key(family, changed):
    assert key_of(family(**SIZES)) != key_of(family(**SIZES | changed))
    assert key_of(family(**SIZES)) == key_of(family(**SIZES))


def test_families_of_the_same_sizes_differ():
    assert key_of(BertConfig(**SIZES)) != key_of(ElectraConfig(**SIZES))


def test_an_exported_student_has_the_key_of_the_candidate_that_it_was(teacher, tmp_path):
    config = student_config(AutoConfig.from_pretrained(teacher), Architecture(1, 2, 8, 16, "gelu"))
    config.hidden_dropout_prob = 0.3
    before = key_of(config)
    config.id2label, config.problem_type = {0: "no", 1: "yes", 2: "perhaps"}, "single_label_classification"
    AutoModel.from_config(config).save_pretrained(tmp_path)
    assert key_of(AutoConfig.from_pretrained(tmp_path)) == before


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        (key.torch, "__version__", "9.9.9+cpu"),
        (key.transformers, "__version__", "9.9.9"),
        (key.torch.backends.cpu, "get_cpu_capability", lambda: "AVX"),
        (key, "device_name", lambda _: "abacus"),
    ],
    ids=["torch", "transformers", "instructions", "device"],
)
def test_versions_and_device_are_in_the_key(where, name, value, monkeypatch):
    before = key_of(BertConfig(**SIZES))
    monkeypatch.setattr(where, name, value)
    assert key_of(BertConfig(**SIZES)) != before


def test_target_and_runtime_are_in_the_key():
    class Abacus(Torch):
        def versions(self):
            return {"abacus": "1.0"}

    config = BertConfig(**SIZES)
    keys = [key_of(config), key_of(config, target="cpu/bf16"), key_of(config, runtime=Abacus())]
    assert len({json.dumps(one) for one in keys}) == 3
    assert keys[1]["target"] == "cpu/bf16" and keys[2]["versions"]["abacus"] == "1.0"


def test_how_threads_wait_is_in_the_key(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    before = key_of(BertConfig(**SIZES))
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert key_of(BertConfig(**SIZES)) != before


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 4), ("150000 100000", 1.5), ("800000 100000", 4)])
def test_cores_are_those_that_the_process_may_use(quota, cores, monkeypatch, tmp_path):
    (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr(key, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(key.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert key.available_cores() == cores
    protocols = [Protocol(length=8, threads=threads) for threads in (1, 8)]
    assert [key.settings(one)["cores"] for one in protocols] == [1, cores]  # more do not speed up one thread


# -- the device's name

ARM = """processor\t: 0
BogoMIPS\t: 50.00
CPU implementer\t: 0x41
CPU architecture: 8
CPU part\t: 0xd0c

processor\t: 1
CPU implementer\t: 0x41
CPU part\t: 0xd0c
"""
LSCPU = """Architecture:          aarch64
Vendor ID:             ARM
  BIOS Model name:     virt-7.2  CPU @ 2.0GHz
  Model name:          {}
    Model:             1
"""


@pytest.mark.parametrize(
    ("cpuinfo", "lscpu", "board", "name"),
    [
        ("model name\t: Fast CPU @ 3GHz\nmodel name\t: Fast CPU @ 3GHz\n", "", "", "Fast CPU @ 3GHz"),
        (ARM, LSCPU.format("Neoverse-N1"), "", "Neoverse-N1"),
        (ARM, LSCPU.format("Cortex-A72"), "Raspberry Pi 4 Model B\0", "Raspberry Pi 4 Model B, Cortex-A72"),
        (ARM, LSCPU.format("Cortex-A53") + "  Model name:  Cortex-A73\n", "", "Cortex-A53 + Cortex-A73"),
        (ARM, LSCPU.format("-"), "", "arm64x 41/d0c"),
        (ARM, "", "", "arm64x 41/d0c"),
        ("", "", "", "arm64x"),
    ],
)
def test_a_processor_has_its_makers_name(cpuinfo, lscpu, board, name, monkeypatch):
    files = {"/proc/cpuinfo": cpuinfo, "/proc/device-tree/model": board}
    monkeypatch.setattr(devices, "_text", files.get)
    monkeypatch.setattr(devices, "output_of", lambda command, **_: lscpu if command == ["lscpu"] else "")
    monkeypatch.setattr(devices.platform, "machine", lambda: "arm64x")
    monkeypatch.setattr(devices.platform, "processor", lambda: "")
    assert devices.cpu_name.__wrapped__() == name


def test_on_a_mac_the_name_comes_from_sysctl(monkeypatch):
    monkeypatch.setattr(devices, "_text", lambda _: "")
    monkeypatch.setattr(devices, "output_of", lambda command, **_: "Apple M2" if command[0] == "sysctl" else "")
    monkeypatch.setattr(devices.platform, "system", lambda: "Darwin")
    assert devices.cpu_name.__wrapped__() == "Apple M2"


# -- the list


@pytest.fixture
def listed(monkeypatch, capsys):
    """Runs the command in this process; returns its exit status or error, and its output."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["latency", *map(str, arguments)])
        try:
            runpy.run_module("kdnas.costs", run_name="__main__")
        except SystemExit as ended:
            return ended.code, capsys.readouterr().out
        return 0, capsys.readouterr().out

    return run


def test_a_table_can_be_listed(listed, tmp_path):
    config = BertConfig(**SIZES)
    old = {"model_type": "bert", **SIZES, "hidden_act": "relu", "device": "abacus", "batch_size": 1, "length": 128}
    rows = [
        {"key": old | {"threads": 2, "dtype": "float32", "torch": "2.0.0"}, "median": 64.51, "spread": 32.25},
        {"key": key_of(config), "median": 3.0, "spread": 0.2, "date": "2031-05-06T07:08:09+00:00", "load": 0.25},
        {"key": key_of(config), "median": 2.0, "spread": 0.1, "date": "2031-05-07T07:08:09+00:00", "load": 0.5},
    ]
    path = tmp_path / "latency.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + '\n{"key": {"cut"')
    status, printed = listed(path)
    assert status == 0
    (new,) = (line for line in printed.splitlines() if "2.00 ± 0.10" in line)
    (earlier,) = (line for line in printed.splitlines() if "64.51 ± 32.25" in line)
    assert "bert [2, 2, 8, 16, gelu]" in new and "2031-05-07 07:08" in new and "0.5" in new and torch.__version__ in new
    assert "abacus" in earlier and "1x128 float32, 2 threads" in earlier and "wide" in earlier and "–" in earlier
    assert "3.00" not in printed  # measured again since


def test_no_table_is_refused_in_one_line(listed, tmp_path):
    (tmp_path / "empty").write_text("nothing\n")
    for path in (tmp_path / "none", tmp_path / "empty", tmp_path):
        line = f"error: {path}: must be a table of latencies, as runs/latency.jsonl; holds none"
        assert listed(path) == (line, "")
    assert listed()[0].startswith("usage: ")


# -- the folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "TEMPORARY", tmp_path)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return tmp_path / f"kdnas-{os.getuid()}"


def spoil(folder, how):
    if how == "link":
        (folder.parent / "other").mkdir()
        folder.symlink_to(folder.parent / "other")
    elif how == "file":
        folder.write_text("")
    else:
        folder.mkdir()
        folder.chmod({"group": 0o775, "everybody": 0o777}[how])


def test_the_folder_is_made_for_its_user_alone(folder):
    assert host.host_folder() == folder and folder.stat().st_mode & 0o777 == 0o700
    assert host.host_folder() == folder


@pytest.mark.parametrize("how", ["link", "file", "group", "everybody"])
def test_a_folder_that_other_users_can_write_to_is_refused(folder, how):
    spoil(folder, how)
    with pytest.raises(ConfigError, match=rf"^{folder}: must be a folder of yours .*XDG_RUNTIME_DIR") as refused:
        host.host_folder()
    assert "\n" not in str(refused.value)


def test_a_folder_of_another_user_is_refused(folder, monkeypatch):
    foreign = folder.with_name("kdnas-12345")
    foreign.mkdir(mode=0o700)
    monkeypatch.setattr(host.os, "getuid", lambda: 12345)
    with pytest.raises(ConfigError, match=f"^{foreign}: .*belongs to user {folder.parent.stat().st_uid}"):
        host.host_folder()


@pytest.mark.parametrize("how", ["link", "everybody"])
def test_the_users_own_runtime_folder_takes_its_place(folder, how, monkeypatch):
    spoil(folder, how)
    own = folder.with_name("run")
    own.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(own))
    assert host.host_folder() == own / "kdnas"
    assert not list(folder.iterdir())


def test_a_good_folder_is_taken_whatever_the_environment(folder, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder.with_name("run")))
    assert host.host_folder() == folder  # a login and a cluster's job meet

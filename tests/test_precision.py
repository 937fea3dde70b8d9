"""The precision that a machine is fastest in."""

import json

import pytest
import torch
from hydra import compose, initialize_config_dir
from test_distiller import CONF

from kdnas.training import precision
from kdnas.training.precision import fastest_precision, rate
from kdnas.training.trainer import make_trainer


@pytest.fixture(autouse=True)
def host(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "host_folder", lambda: tmp_path)
    return tmp_path


@pytest.mark.parametrize(("speedup", "chosen"), [(0.8, "32-true"), (1.0, "32-true"), (3.0, "bf16-mixed")])
def test_the_speedup_is_measured_once(speedup, chosen, host, monkeypatch):
    measured = []
    monkeypatch.setattr(precision, "speedup", lambda device: measured.append(device) or speedup)
    assert [fastest_precision("cpu") for _ in range(3)] == [chosen] * 3
    assert measured == ["cpu"]
    (known,) = json.loads((host / "precision.json").read_text()).items()
    assert torch.__version__ in known[0] and known[1] == speedup


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": "b"}'])
def test_a_damaged_file_is_measured_again(content, host, monkeypatch):
    (host / "precision.json").write_text(content)
    monkeypatch.setattr(precision, "speedup", lambda _: 2.0)
    assert fastest_precision("cpu") == "bf16-mixed"
    assert list(json.loads((host / "precision.json").read_text()).values()) == [2.0]


def test_a_machine_without_bf16_trains_in_fp32(monkeypatch):
    def refuse(device, rows, inner, columns, dtype):
        if dtype == torch.bfloat16:
            raise RuntimeError("not implemented for 'BFloat16'")
        return rate(device, 8, 8, 8, dtype)

    monkeypatch.setattr(precision, "rate", refuse)
    assert fastest_precision("cpu") == "32-true"


def test_a_full_device_is_not_taken_for_one_without_bf16(host, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(precision, "rate", full)
    with pytest.raises(torch.OutOfMemoryError):
        fastest_precision("cpu")
    assert not (host / "precision.json").exists()


@pytest.mark.parametrize(("given", "made"), [("auto", "bf16-mixed"), ("32-true", "32-true"), ("64-true", "64-true")])
def test_the_trainer_gets_the_precision(given, made, monkeypatch, tmp_path):
    monkeypatch.setattr(precision, "speedup", lambda _: 2.0)
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("train", [f"trainer.precision={given}", "trainer.accelerator=cpu", f"paths.output={tmp_path}"])
    assert make_trainer(cfg.trainer, logger=False).precision == made

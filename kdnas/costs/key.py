"""The key of the latency table: everything that a latency depends on."""

import hashlib
import json
import os
import platform
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig

from kdnas.costs.devices import device_name
from kdnas.costs.runtimes import Runtime
from kdnas.costs.targets import Protocol, Target
from kdnas.models.architecture import Architecture

QUOTA = Path("/sys/fs/cgroup/cpu.max")
IRRELEVANT = {
    *("architectures", "dtype", "torch_dtype", "transformers_version", "initializer_range", "layer_norm_eps"),
    *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params"),
    *("bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id", "mask_token_id", "decoder_start_token_id"),
    *("add_cross_attention", "tie_word_embeddings", "is_encoder_decoder", "return_dict", "gradient_checkpointing"),
}
"""Settings of a model's config that do not change the encoder's computation, or are in the protocol."""
VARIABLES = (
    *("OMP_WAIT_POLICY", "OMP_PROC_BIND", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_AFFINITY"),
    *("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "LD_PRELOAD"),
)
"""Environment variables that change the speed of the libraries below torch."""


def table_key(config: PreTrainedConfig, target: Target, runtime: Runtime, protocol: Protocol) -> dict[str, Any]:
    """Returns the key of a measurement as JSON values; measurements with equal keys are comparable."""
    model = {name: getattr(config, name) for name in ("model_type", *Architecture.__dataclass_fields__)}
    model |= {"config": config_digest(config), "attention": config._attn_implementation or "sdpa"}
    where = {"target": str(target), "device": device_name(target.device), "host": device_name("cpu")}
    return model | where | asdict(protocol) | {"versions": versions(runtime)} | settings(protocol)


def config_digest(config: PreTrainedConfig) -> str:
    """Returns a digest of all relevant settings of a config, including those of its family alone."""
    values = json.loads(config.to_json_string(use_diff=False))
    relevant = {
        name: value
        for name, value in values.items()
        if name not in IRRELEVANT and "dropout" not in name and not name.startswith("_")
    }
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()[:16]


def versions(runtime: Runtime) -> dict[str, str]:
    python = ".".join(platform.python_version_tuple()[:2])
    return runtime.versions() | {"transformers": transformers.__version__, "python": python}


def settings(protocol: Protocol) -> dict[str, Any]:
    """Returns what this process may use of the host, and settings of torch and the environment."""
    return {
        "cores": min(protocol.threads, available_cores()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "matmul": torch.get_float32_matmul_precision(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def available_cores() -> float:
    """Returns the number of processors that this process may use, by its affinity and its container's quota."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no such file, or a quota of "max"
        quota, period = QUOTA.read_text().split()
        return min(bound, int(quota) / int(period))
    return bound

"""Counts a model's parameters and floating-point operations, without building its weights."""

import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig

from kdnas.models.building import new_encoder
from kdnas.models.families import family_of

_flops: dict[tuple[str, int, int], int] = {}


def count_parameters(config: PreTrainedConfig) -> int:
    """Counts the parameters of an encoder, with embeddings and without a pooler."""
    with torch.device("meta"):
        return new_encoder(config).num_parameters()


def count_flops(config: PreTrainedConfig, batch_size: int, length: int) -> int:
    """Counts the floating-point operations of a forward pass (matrix products and attention).

    Once for each config and shape of a process: a search asks again and again.
    """
    key = f"{type(config)} {config.to_json_string(use_diff=False)}", batch_size, length
    if key not in _flops:
        _flops[key] = _count_flops(config, batch_size, length)
    return _flops[key]


def _count_flops(config: PreTrainedConfig, batch_size: int, length: int) -> int:
    # Fake tensors on the meta device: on the CPU, fused attention is not counted; with real meta tensors, transformers
    # fails when it reads the mask's values. Models that compute attention themselves may read values (DeBERTa), which
    # only fakes on the CPU have. Fakes cannot be made in inference mode, in which a validation may ask.
    device = "meta" if family_of(config).calls_attention(config) else "cpu"
    with torch.inference_mode(False), FakeTensorMode(allow_non_fake_inputs=True), torch.device(device):
        model = new_encoder(config).eval().requires_grad_(False)
        tokens = torch.zeros(batch_size, length, dtype=torch.long)
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    return counter.get_total_flops()

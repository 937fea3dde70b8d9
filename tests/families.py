"""Tiny configs of every family of docs/models.md, for the tests of families."""

import pytest
import torch
import transformers

from kdnas.datamodules.flat import PadCollator
from kdnas.models.architecture import Architecture
from kdnas.models.families import family_of

DISENTANGLED = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False}
SUPPORTED = {
    "albert": {},
    "bert": {},
    "big_bird": {},
    "camembert": {},
    "convbert": {},
    "data2vec-text": {},
    "deberta": DISENTANGLED,
    "deberta-v2": DISENTANGLED | {"position_buckets": 16, "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    "distilbert": {},
    "electra": {"embedding_size": 12},
    "ernie": {},
    "eurobert": {},
    "megatron-bert": {},
    "modernbert": {"local_attention": 10, "cls_token_id": 2, "sep_token_id": 3},
    "mpnet": {},
    "nomic_bert": {},
    "nystromformer": {},
    "rembert": {},
    "roberta": {},
    "roberta-prelayernorm": {},
    "roformer": {},
    "xlm-roberta": {},
    "xlm-roberta-xl": {},
}
"""The families of docs/models.md, each with what its usual checkpoints set, smaller."""
UNLIKE_OTHERS = {"albert", "bert", "deberta", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta"}


def families(names, quick=UNLIKE_OTHERS):
    """Parameters of a test: the families in `names`; those that are not in `quick` are long."""
    return [pytest.param(name, marks=[pytest.mark.long] * (name not in quick)) for name in sorted(names)]


def config_of(family, **values):
    """A tiny config: 4 layers, hidden 32."""
    given = {"vocab_size": 70, "pad_token_id": 1, "num_labels": 3} | SUPPORTED.get(family, {}) | values
    config = transformers.CONFIG_MAPPING[family](**given)
    config = family_of(config).resize(config, Architecture(4, 4, 32, 48, "gelu"))
    config.update({"bos_token_id": 2, "eos_token_id": 3})
    if getattr(config, "max_position_embeddings", None):
        config.max_position_embeddings = 40
    return config


def batch_of(*lengths):
    torch.manual_seed(0)
    return PadCollator(1)([{"input_ids": torch.randint(4, 70, (length,))} for length in lengths])

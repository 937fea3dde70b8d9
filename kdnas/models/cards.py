"""Model cards: the README.md of an exported Hugging Face folder."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import ModelCardData
from transformers import PreTrainedModel

from kdnas import __version__
from kdnas.models.families import architecture_of

HUB_ID = r"[\w.-]+/[\w.-]+"
USES = {
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "text-classification"),
    "ForMaskedLM": ("AutoModelForMaskedLM", "fill-mask"),
}
"""The Auto class and the hub's pipeline tag of a model, by the end of its class's name."""
CARD = """---
{data}
---

# {title}

Made by kdnas {version}, which searches for small students of language-model encoders and distils them.

| | |
|---|---|
{rows}

```python
from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained("{title}"{arguments})
tokenizer = AutoTokenizer.from_pretrained("{title}")
```
"""
POOLING = """
There is no trained pooler here: a `pooler_output` would be of random weights. As the vector of a text, take the mean of
the last hidden states over its real tokens:

```python
batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
states, real = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
vectors = (states * real).sum(1) / real.sum(1)
```
"""


def card(model: PreTrainedModel, title: str, about: Mapping[str, str], metrics: Mapping[str, float]) -> str:
    """Returns the model card of an exported model, in Markdown with the hub's metadata.

    Args:
        title: the name of the model's folder.
        about: how the model was made, by heading; a value is text, or a model's folder or hub id.
        metrics: the model's held-out metrics.
    """
    kind = type(model).__name__
    auto, use = next((uses for end, uses in USES.items() if kind.endswith(end)), ("AutoModel", "feature-extraction"))
    bare = model.base_model is model
    # Other families have no pooler, or no argument to leave it out.
    pools = "add_pooling_layer" in inspect.signature(type(model).__init__).parameters
    origins = [value for value in about.values() if re.fullmatch(HUB_ID, value) and not Path(value).exists()]
    data = ModelCardData(
        base_model=origins[0] if origins else None,
        library_name="transformers",
        pipeline_tag=use,
        tags=["kdnas", "knowledge-distillation"],
    )
    rows = {name: Path(value).name if Path(value).exists() else value for name, value in about.items()}
    rows |= {"architecture": str(architecture_of(model.config)), "parameters": f"{model.num_parameters() / 1e6:.1f}M"}
    rows |= {"held out": ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())} if metrics else {}
    text = CARD.format(
        data=data.to_yaml(),
        title=title,
        version=__version__,
        rows="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
        auto=auto,
        arguments=", add_pooling_layer=False" if bare and pools else "",
    )
    return text + POOLING * bare

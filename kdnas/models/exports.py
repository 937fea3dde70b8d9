"""Exports models as Hugging Face folders: atomically, and never over files that kdnas did not write."""

import inspect
import json
import os
import re
import secrets
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from huggingface_hub import ModelCardData
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from kdnas import __version__
from kdnas.base.disk import writing
from kdnas.base.errors import ConfigError
from kdnas.base.files import fingerprint
from kdnas.models.families import architecture_of

MARK = "kdnas.json"
"""The file that marks a folder as an export of kdnas: it holds a digest of every file that kdnas wrote there."""
README = "README.md"
KEPT = (README, "LICENSE", "LICENSE.md", ".gitattributes", ".gitignore")
"""Files about a model that a user may add to an export or edit; a new export in its place keeps them."""
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


def check_export(folder: Path, several: bool = False) -> None:
    """Refuses a folder that holds anything but an export (of `several` students, numbered ones) as kdnas left it."""
    paths = list(folder.iterdir()) if folder.is_dir() else []
    numbered = bool(paths) and all(path.is_dir() and path.name.isdecimal() for path in paths)
    reason = "is a file" if folder.exists() and not folder.is_dir() else ""
    if numbered:
        reason = next(filter(None, (_foreign(path, KEPT if several else ()) for path in paths)), "")
    elif paths:
        reason = "holds the export of one student" if several else _foreign(folder, KEPT)
    if reason:
        raise ConfigError(f"paths.export={folder}: {reason}; must be empty, not there, or an export as kdnas left it")


def _foreign(folder: Path, kept: Collection[str]) -> str:
    """Returns why a folder must not be replaced; empty if it is an export that only `kept` files differ in."""
    written = _written(folder)
    if written is None:
        return "holds something that is not a model from kdnas"
    for path in sorted(path for path in folder.rglob("*") if not path.is_dir()):
        name = path.relative_to(folder).as_posix()
        if name != MARK and name not in kept and written.get(name) != fingerprint(path):
            return f"holds {name}, which kdnas did not write"
    return ""


def _written(folder: Path) -> dict[str, str] | None:
    try:
        files = json.loads((folder / MARK).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return files if isinstance(files, dict) else None


def export(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    folder: Path,
    about: Mapping[str, str] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Path:
    """Writes a folder that transformers' `from_pretrained` loads: model, tokenizer and model `card`; atomically."""
    check_export(folder)
    folder = folder.resolve()  # the target, if it is a link
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = (folder.with_name(f".{folder.name}-{secrets.token_hex(4)}") for _ in range(2))
    fresh.mkdir()
    try:
        with writing(fresh, size=sum(weight.nbytes for weight in model.state_dict().values())):
            model.save_pretrained(fresh)
            tokenizer.save_pretrained(fresh)
        (fresh / README).write_text(card(model, folder.name, about or {}, metrics or {}), encoding="utf-8")
        _mark(fresh)
        _share(fresh)
        if folder.exists():
            _keep(folder, fresh)
            os.rename(folder, old)
        os.rename(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _mark(folder: Path) -> None:
    files = {path.relative_to(folder).as_posix(): fingerprint(path) for path in folder.rglob("*") if path.is_file()}
    (folder / MARK).write_text(json.dumps({"files": files}, indent=1, sort_keys=True) + "\n")


def _share(folder: Path) -> None:
    """Gives all files the mode of the model card, which follows the umask; safetensors makes private files."""
    mode = (folder / README).stat().st_mode
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _keep(old: Path, fresh: Path) -> None:
    """Copies the files that a user has written or edited (see `KEPT`) from the old export to the new one."""
    written = _written(old) or {}
    for name in KEPT:
        if (old / name).is_file() and written.get(name) != fingerprint(old / name):
            shutil.copy2(old / name, fresh / name)


def card(model: PreTrainedModel, title: str, about: Mapping[str, str], metrics: Mapping[str, float]) -> str:
    """Returns the model card of an exported model, in Markdown with the hub's metadata and held-out metrics.

    `about` says how the model was made, by heading; a value is text, or a model's folder or hub id.
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

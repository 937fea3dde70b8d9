"""A plain loop of MiniLMv2, as public re-implementations have it: hooks on the projections, and padded rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from benchmarks.contenders import CLIP, Clock, Course, Timed, adamw_of

HEADS = 48
KINDS = ("query", "key", "value")


class Hooked:
    """A model of BERT's family whose queries, keys and values of one layer are kept in each pass, by hooks."""

    def __init__(self, model: PreTrainedModel, layer: int) -> None:
        self.model, self.kept = model, dict[str, Tensor]()
        attention: Any = model.get_submodule(f"encoder.layer.{layer}.attention.self")
        for kind in KINDS:
            getattr(attention, kind).register_forward_hook(lambda _, __, values, kind=kind: self.keep(kind, values))

    def keep(self, kind: str, values: Tensor) -> None:
        self.kept[kind] = values

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the relations' scores by kind, (rows, relation heads, length, length), with padding masked."""
        self.model(**batch)
        hidden = ~batch["attention_mask"].bool()[:, None, None]
        scores = {}
        for kind, values in self.kept.items():
            heads = values.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            scores[kind] = (heads @ heads.mT / heads.shape[-1] ** 0.5).masked_fill(hidden, -1e4)
        return scores


def plain_relations(course: Course, clock: Clock) -> None:
    """Trains a student with the teacher online, in fp32, on rows padded to the longest of a batch."""
    teacher, student = course.models()
    taught, trained = (Hooked(one, one.config.num_hidden_layers - n) for one, n in ((teacher, 2), (student, 1)))
    optimizer = adamw_of(student)
    scheduler = LambdaLR(optimizer, course.schedule)
    student.train()
    for _ in range(course.epochs):
        for batch in Timed(course.loader(course.training_rows()), clock):
            batch = {name: values.to(course.device) for name, values in batch.items()}
            with torch.no_grad():
                expected = taught(batch)
            own, real = trained(batch), batch["attention_mask"].float()
            loss = torch.zeros((), device=course.device)
            for kind in KINDS:
                log = functional.log_softmax(own[kind], dim=-1)
                rows = functional.kl_div(log, expected[kind].softmax(-1), reduction="none").sum(-1).mean(1)
                loss = loss + (rows * real).sum() / real.sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), CLIP)
            optimizer.step()
            scheduler.step()
            loss.item()

"""Students that train on the same batches: side by side in threads on a CPU, else one after the other."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BatchEncoding

from kdnas.models.families import architecture_of
from kdnas.models.features import Features
from kdnas.models.packing import Layout
from kdnas.training.student import Student
from kdnas.training.student_threads import SideBySide, draws, places
from kdnas.training.trainer import balanced

log = logging.getLogger(__name__)


class Gang:
    """The students of one training, k >= 1, each trained as it would be alone; `measured` measures a part of a step."""

    def __init__(self, students: Sequence[Student], measured: Callable[[str], AbstractContextManager[None]]) -> None:
        self.students, self.measured = students, measured
        self.threads: SideBySide | None = None

    def share_cores(self, device: torch.device, context: Callable[[], AbstractContextManager[None]]) -> None:
        """Uses threads, each in a `context`, if this changes rounding alone: on a CPU, without random numbers."""
        self.threads, several = None, min(len(self.students), places())
        changes = any(draws(student.model) or student.compiled is not None for student in self.students)
        if several > 1 and device.type == "cpu" and not torch.distributed.is_initialized() and not changes:
            self.threads = SideBySide(several, context)

    @property
    def remaining(self) -> list[Student]:
        """The students that are still trained, the largest first: threads then end at about the same time."""
        return sorted(
            (student for student in self.students if not student.lost),
            key=lambda student: architecture_of(student.model.config).size,
            reverse=True,
        )

    def losses(self, batch: BatchEncoding, teacher: Features, scale: float = 1.0) -> Tensor:
        """Returns the losses of the remaining students for a batch, (students,).

        With several students, their backward passes are run too, which frees the activations of each; `scale` is a
        factor for their gradients.
        """
        students = self.remaining
        losses: list[Tensor | None] = [None] * len(students)
        if self.threads:
            Layout.of(batch)  # computed once, before the threads need it
            with self.measured("side by side"):
                losses = self.threads.map(lambda student: self._beside(student, batch, teacher, scale), students)
        return torch.stack(
            [
                self._alone(student, batch, teacher, scale) if loss is None else loss
                for student, loss in zip(students, losses, strict=True)
            ]
        )

    def watch(self, batch: BatchEncoding, teacher: Features, split: int) -> None:
        if self.threads:
            Layout.of(batch)
            self.threads.map(lambda student: student.watch(batch, teacher, split), self.remaining)
            return
        for student in self.remaining:
            student.watch(batch, teacher, split)

    def _loss(self, student: Student, batch: BatchEncoding, teacher: Features, scale: float) -> Tensor:
        means, _ = student(batch, teacher)
        losses = {name: balanced(mean.value, mean.count) for name, mean in means.items()}
        student.losses = {name: loss.detach() for name, loss in losses.items()}
        loss = student.weighted(losses)
        if len(self.students) == 1:
            return loss
        with nullcontext() if self.threads else self.measured("backward"):
            return at_once(loss, list(student.parameters()), scale)

    def _beside(self, student: Student, batch: BatchEncoding, teacher: Features, scale: float) -> Tensor | None:
        try:
            return self._loss(student, batch, teacher, scale)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return None

    def _alone(self, student: Student, batch: BatchEncoding, teacher: Features, scale: float) -> Tensor:
        """Computes the loss of a student alone. One of several that runs out of memory is lost; the others go on."""
        try:
            return self._loss(student, batch, teacher, scale)
        except (RuntimeError, MemoryError) as error:
            others = [other for other in self.students if other is not student and not other.lost]
            if not is_out_of_memory(error) or not others or torch.distributed.is_initialized():
                raise
        student.lose()  # outside of the handler, whose traceback keeps the memory in use
        log.warning("%s: does not fit into memory beside the others of its gang", architecture_of(student.model.config))
        return torch.zeros((), device=batch["attention_mask"].device)


def at_once(loss: Tensor, parameters: Sequence[nn.Parameter], scale: float = 1.0) -> Tensor:
    """Computes a loss's gradients now and stores them for `backward`, so that the activations can be freed.

    Args:
        scale: a factor for the gradients. It replaces the gradient that `backward` would pass on: the result may
            only be added to others and, by Lightning, divided.

    Returns:
        A scalar equal to the loss, whose `backward` adds the stored gradients to the parameters.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    if scale != 1.0:
        gradients = tuple(None if gradient is None else gradient * scale for gradient in gradients)
    return _Computed.apply(loss.detach(), list(gradients), *trained)


class _Computed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor | None], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, _: Any) -> Any:
        gradients, ctx.gradients = ctx.gradients, None
        return None, None, *gradients


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)

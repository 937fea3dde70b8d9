"""Gangs: gradients one student after the other, and students that do not fit."""

from threading import current_thread, main_thread

import pytest
import torch
from test_distiller import DEEP, SMALL, WIDE, Texts, distiller, equal_states, trainer

from kdnas.base.errors import ConfigError
from kdnas.distillation.terms import Mean
from kdnas.training.gang import at_once, is_out_of_memory
from kdnas.training.student import Student


def test_gradients_at_once_are_those_of_backward():
    torch.manual_seed(0)
    weight, frozen = torch.nn.Parameter(torch.randn(3, 3)), torch.nn.Parameter(torch.randn(3), requires_grad=False)
    unused = torch.nn.Parameter(torch.randn(2))
    inputs = torch.randn(5, 3)

    def loss():
        return (inputs @ weight + frozen).square().mean()

    loss().backward()
    expected = weight.grad.clone()
    weight.grad = None
    value = at_once(loss(), [weight, frozen, unused])
    assert torch.equal(value, loss().detach()) and weight.grad is None
    (value + at_once(loss(), [weight], scale=0.5)).backward()
    torch.testing.assert_close(weight.grad, 1.5 * expected)
    assert frozen.grad is None and unused.grad is None


def test_what_led_to_a_loss_is_freed():
    weight, freed = torch.nn.Parameter(torch.ones(4)), []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):
            ctx.kept = type("Kept", (), {"__del__": lambda self: freed.append(True)})()
            return values * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 2

    value = at_once(Watched.apply(weight).sum(), [weight])
    assert freed == [True]
    value.backward()
    assert torch.equal(weight.grad, torch.full((4,), 2.0))


# -- students that do not fit


def use(threads, request):
    """Gives PyTorch so many threads until the test is over."""
    torch.set_num_threads(threads)
    request.addfinalizer(lambda: torch.set_num_threads(1))


@pytest.fixture
def too_large(monkeypatch):
    """Makes students of a hidden size run out of memory from their n-th batch on."""
    forward, seen = Student.forward, []

    def limited(self, batch, teacher):
        if self.model.config.hidden_size == WIDE.hidden_size:
            seen.append(batch)
            if len(seen) > limited.batches:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, batch, teacher)

    limited.batches = 3
    monkeypatch.setattr(Student, "forward", limited)
    return limited


@pytest.mark.parametrize("threads", [1, 2])
def test_one_that_does_not_fit_leaves_the_others_untouched(teacher, too_large, threads, request):
    use(threads, request)
    gang, alone = distiller(teacher, SMALL, WIDE, DEEP), [distiller(teacher, one) for one in (SMALL, DEEP)]
    for module in (gang, *alone):
        trainer(max_epochs=2).fit(module, datamodule=Texts(teacher))
        torch.set_num_threads(1)  # the share of each
    small, _, deep = gang.trainees
    assert [student.lost for student in gang.trainees] == [False, True, False]
    for student, module in zip((small, deep), alone, strict=True):
        equal_states(student.state_dict(), module.trainees[0].state_dict())
    assert [one["loss"] == one["loss"] for one in gang.results] == [True, False, True]  # of the lost one, not a number
    assert gang.results[0] == alone[0].results[0] and gang.results[2] == alone[1].results[0]
    with pytest.raises(ConfigError, match=r"^architectures=\[1, 4, 20, 32, silu\]: no memory for it beside the others"):
        gang.refuse_lost()


def test_one_that_does_not_fit_beside_the_others_has_its_turn(teacher, monkeypatch, request):
    use(2, request)
    forward, alone = Student.forward, distiller(teacher, WIDE)
    trainer(max_epochs=2).fit(alone, datamodule=Texts(teacher))

    def limited(self, batch, teacher):
        beside = current_thread() is not main_thread() and self.training
        if beside and self.model.config.hidden_size == WIDE.hidden_size:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, batch, teacher)

    monkeypatch.setattr(Student, "forward", limited)
    gang = distiller(teacher, SMALL, WIDE)
    trainer(max_epochs=2).fit(gang, datamodule=Texts(teacher))
    assert not any(student.lost for student in gang.trainees)
    equal_states(gang.trainees[1].state_dict(), alone.trainees[0].state_dict())


def test_one_that_has_nobody_beside_it_fails(teacher, too_large):
    too_large.batches = 0
    for architectures in ([WIDE], [WIDE, WIDE]):
        with pytest.raises(torch.OutOfMemoryError):
            trainer().fit(distiller(teacher, *architectures), datamodule=Texts(teacher))


def test_other_errors_are_not_taken_for_want_of_memory(teacher, monkeypatch):
    def broken(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Student, "forward", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        trainer().fit(distiller(teacher, SMALL, DEEP), datamodule=Texts(teacher))


def test_a_want_of_memory_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("nan"))


def test_one_that_diverges_leaves_the_others_untouched(teacher, monkeypatch):
    forward = Student.forward

    def diverging(self, batch, teacher):
        losses, own = forward(self, batch, teacher)
        factor = float("nan") if self.model.config.hidden_size == WIDE.hidden_size else 1.0
        return {name: Mean(mean.value * factor, mean.count) for name, mean in losses.items()}, own

    monkeypatch.setattr(Student, "forward", diverging)
    gang, alone = distiller(teacher, WIDE, SMALL), distiller(teacher, SMALL)
    for module in (gang, alone):
        trainer(max_epochs=2).fit(module, datamodule=Texts(teacher))
    equal_states(gang.trainees[1].state_dict(), alone.trainees[0].state_dict())

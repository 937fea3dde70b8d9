"""Losses of logits, (rows, classes) or (masked tokens, vocabulary): means over the rows or the masked tokens.

Without masked tokens a loss is 0, with gradients of 0.
"""

from torch import Tensor
from torch.nn import functional


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """1/2 ||logits_S - logits_T||^2: KD-NAS v1, Eq. 2."""
    return 0.5 * _mean((student.float() - teacher.float()).square().sum(-1))


def soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(logits_T / T) || softmax(logits_S / T)) at the temperature T (Hinton et al., 2015).

    The gradients are those of the cross entropy, which is larger by the teacher's entropy; 0 is the best value here.
    """
    own, target = (functional.log_softmax(logits.float() / temperature, dim=-1) for logits in (student, teacher))
    return temperature**2 * _mean(functional.kl_div(own, target, reduction="none", log_target=True).sum(-1))


def _mean(losses: Tensor) -> Tensor:
    return losses.sum() / max(1, len(losses))

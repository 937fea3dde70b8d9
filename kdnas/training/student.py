"""One student: its model, the loss terms of each stage, and its held-out loss and metrics."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import SumMetric
from transformers import BatchEncoding, PreTrainedConfig, PreTrainedModel

from kdnas.base.errors import ConfigError
from kdnas.distillation.objective import Objective
from kdnas.distillation.terms import LossTerm, Mean
from kdnas.models.families import family_of
from kdnas.models.features import ATTENTION_INPUTS, Feature, Features, Kind
from kdnas.models.forward import outputs
from kdnas.models.heads import unfreezing_groups
from kdnas.models.initialisation import MatchedRelations
from kdnas.training.split_metrics import SplitMetrics


class Student(nn.Module):
    """One student with the loss terms of each stage, and its metrics.

    Args:
        config, teacher: the configs of student and teacher.
        seed: the seed of its initial weights and those of its terms.
        dropout: its dropout while it is distilled; None for its config's.

    Attributes:
        stage: the index of the current stage.
        losses: the loss of each term in the last training step, without gradients.
        lost: whether it ran out of memory and is not trained any more.
        compiled: its encoder, compiled; None to run it as it is.
    """

    model: PreTrainedModel

    def __init__(
        self,
        config: PreTrainedConfig,
        teacher: PreTrainedConfig,
        objective: Objective,
        seed: int,
        also: Sequence[str] = (),
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        self.model = objective.head.new(config, seed, dropout)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stages = [stage.build(config, teacher) for stage in objective.stages]
        self.objectives = nn.ModuleList(nn.ModuleDict(terms) for terms in self.stages)  # registers them as submodules
        self.weights = [{name: stage.weights.get(name, 1) for name in stage.terms} for stage in objective.stages]
        self.stage = 0
        self.losses: dict[str, Tensor] = {}
        self.lost = False
        self.compiled: Callable[..., Any] | None = None
        names = {name for terms in self.stages for name in terms}
        self.means = {name: RunningMean() for name in sorted(names)}
        self.held_out_means = nn.ModuleDict(self.means)
        self.metrics = SplitMetrics(objective.task, also)

    def compile_encoder(self) -> None:
        """Compiles the encoder with dynamic shapes, at its first use.

        Raises:
            ConfigError: the terms take queries, keys or values, which the family gives by hooks: not compiled ones.
        """
        config, kinds = self.model.config, {feature.kind for term in self.all_terms for feature in term.student}
        if kinds.intersection(ATTENTION_INPUTS) and not family_of(config).calls_attention(config):
            why = f"a {config.model_type} that is compiled gives no queries, keys and values"
            raise ConfigError.of("compile", f"=true: {why}, which the objective takes; must be false")
        self.__dict__["compiled"] = torch.compile(self.model.base_model, dynamic=True)  # not registered as a submodule

    @property
    def terms(self) -> dict[str, LossTerm]:
        """The current stage's loss terms by name."""
        return self.stages[self.stage]

    @property
    def all_terms(self) -> list[LossTerm]:
        return [term for terms in self.stages for term in terms.values()]

    @property
    def relations(self) -> MatchedRelations | None:
        """The attention relations that the first stage matches, if it has no other term."""
        terms = list(self.stages[0].values())
        return terms[0].relations if len(terms) == 1 else None

    @property
    def features(self) -> set[Feature]:
        """The student's own features that the current stage's terms and the metrics take."""
        logits = {self.metrics.task.feature} if self.metrics.task else set()
        return logits.union(*(term.student for term in self.terms.values()))

    @torch.no_grad()
    def fit_terms(
        self,
        batches: Sequence[BatchEncoding],
        teacher: Callable[[BatchEncoding, Collection[Feature]], Features],
    ) -> None:
        """Fits what the loss terms learn to the hidden states of student and teacher on a sample of text."""
        states = {
            term: [{f for f in some if f.kind is Kind.HIDDEN_STATE} for some in (term.student, term.teacher)]
            for term in self.all_terms
        }
        wanted, given = (frozenset[Feature]().union(*some) for some in zip(*states.values(), strict=True))
        if not wanted:
            return
        training = self.model.training
        self.model.eval()
        own = _joined([outputs(self.model, batch, wanted) for batch in batches], wanted)
        theirs = _joined([teacher(batch, given) for batch in batches], given)
        for term, (mine, target) in states.items():
            if mine:
                term.fit({f: own[f] for f in mine}, {f: theirs[f] for f in target})
        self.model.train(training)

    def unfreeze(self, share: float) -> None:
        """Makes a share of the model's layers trainable, top-down: from the head alone (0) to all (1)."""
        self.model.requires_grad_(True)
        if share < 1:
            groups = unfreezing_groups(self.model)
            for group in groups[1 + round(share * (len(groups) - 1)) :]:
                for parameter in group:
                    parameter.requires_grad_(False)

    def lose(self) -> None:
        """Stops training this student of a gang, because it ran out of memory. The others go on."""
        self.lost = True
        self.zero_grad()

    def forward(self, batch: BatchEncoding, teacher: Features) -> tuple[dict[str, Mean], Features]:
        """Returns the loss of each of the current stage's terms, and the student's features."""
        own = outputs(self.model, batch, self.features, self.compiled)
        means = {}
        for name, term in self.terms.items():
            trained = torch.is_grad_enabled() and bool(self.weights[self.stage][name])
            with torch.set_grad_enabled(trained):
                means[name] = term(own, teacher, batch)
        return means, own

    def weighted(self, losses: Mapping[str, Any]) -> Any:
        """Returns the current stage's loss: the weighted sum of its terms', by name, as tensors or numbers.

        Without the terms of weight 0, whose losses may not even be finite.
        """
        weights = self.weights[self.stage]
        return sum(losses[name] * weights[name] for name in losses if weights[name])

    def begin(self) -> None:
        for mean in self.means.values():
            mean.reset()
        self.metrics.reset()

    def watch(self, batch: BatchEncoding, teacher: Features, split: int) -> None:
        """Updates the metrics with a held-out batch, and the losses if the batch is of the first split."""
        losses, own = self(batch, teacher)
        for name in losses if split == 0 else ():
            self.means[name].update(losses[name])
        if self.metrics.task:
            self.metrics.update(split, own[self.metrics.task.feature], batch["labels"])

    def results(self) -> dict[str, float]:
        """Returns the held-out loss, each term's if there are several, and the metrics; NaN for a lost student."""
        losses = {name: math.nan if self.lost else self.means[name].compute() for name in self.terms}
        several = {f"loss_{name}": loss for name, loss in losses.items()} if len(losses) > 1 else {}
        metrics = dict.fromkeys(self.metrics.names, math.nan) if self.lost else self.metrics.compute()
        return {"loss": self.weighted(losses), **several, **metrics}


def _joined(batches: Sequence[Features], features: Collection[Feature]) -> Features:
    """Returns the features of all items of several batches, on the CPU."""
    return {feature: torch.cat([batch[feature].cpu().float() for batch in batches]) for feature in features}


class RunningMean(nn.Module):
    """The mean of a loss over all items of the batches and devices so far."""

    def __init__(self) -> None:
        super().__init__()
        # Two sums, since torchmetrics' MeanMetric drops NaN values, or else its weights.
        self.total, self.count = SumMetric("disable"), SumMetric("disable")

    def reset(self) -> None:
        self.total.reset()
        self.count.reset()

    def update(self, mean: Mean) -> None:
        self.total.update(mean.total)
        self.count.update(mean.count)

    def compute(self) -> float:
        return float(self.total.compute() / self.count.compute())

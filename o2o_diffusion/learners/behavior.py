"""A first phase that fits a model of the data's behavior."""

from abc import abstractmethod

from torch import Tensor, nn

from o2o_diffusion.learners.base import BaseLearner
from o2o_diffusion.optimization import Optimizer
from o2o_diffusion.schedule import Budget, Phase
from o2o_diffusion.types import Metrics, Transitions

BEHAVIOR = "behavior"


class BehaviorFirst(BaseLearner):
    """Base of learners with a behavior model, trained for `config.behavior_updates` before they pretrain."""

    behavior: nn.Module
    behavior_optimizer: Optimizer

    @abstractmethod
    def behavior_loss(self, batch: Transitions) -> Tensor:
        """The loss of the behavior model."""

    def update(self, batch: Transitions) -> Metrics:
        """Train the behavior model in its phase, and only there."""
        if self.phase.name == BEHAVIOR:
            return {"behavior_loss": self.behavior_optimizer.step(self.behavior_loss(batch))}
        return super().update(batch)  # pyright: ignore[reportAbstractUsage]

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        """The default phases after that of the behavior model, which a run without pretraining leaves out."""
        c, shares = self.config, self.offline_shares()
        first = Phase(BEHAVIOR, c.behavior_updates, shares=shares, batch_size=c.batch_size)
        is_trained = c.behavior_updates and budget.pretrain_updates
        return (*([first] if is_trained else []), *super().phases(budget))

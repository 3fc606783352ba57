"""One seed of a stacked learner, as its loop sees it."""

from contracts.stacked import SmallLearner
from torch import Tensor

from o2o_diffusion.distributed import ShardedRng
from o2o_diffusion.learners.base import required
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Budget, Phase
from o2o_diffusion.state import Stateful
from o2o_diffusion.types import Episode, Metrics, Transitions


class SeedView(Stateful):
    """Acts and answers for one seed (None: the learner is not stacked); updates are run for all seeds together."""

    def __init__(self, stacked: SmallLearner, seed: int | None = None):
        self.stacked, self.seed = stacked, seed

    def act(self, observations: Tensor, *, deterministic: bool = False, rng: ShardedRng | None = None) -> Tensor:
        actor = self.stacked.parameters["actor"]
        mode = (observations @ (actor if self.seed is None else actor[self.seed])).tanh().detach()
        return mode if deterministic else (mode + 0.1 * required(rng).normal(*mode.shape)).clamp(-1, 1)

    def values(self, observations: Tensor, actions: Tensor) -> Tensor:
        q = self.stacked.q(observations, actions)
        return (q if self.seed is None else q[self.seed]).amin(-2)

    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        raise TypeError("a deterministic policy has no density")

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        return (Phase("pretrain", updates=budget.pretrain_updates, batch_size=32),)

    def begin_phase(self, phase: Phase, replay: Replay) -> None: ...

    def update(self, batch: Transitions) -> Metrics:
        return self.stacked.update(batch)

    def begin_episode(self) -> None: ...

    def end_episode(self, episode: Episode) -> None: ...

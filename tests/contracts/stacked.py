"""A small learner whose losses hold for one seed and for K stacked seeds alike."""

import torch
from torch import Tensor, nn

from o2o_diffusion.distributed import seeded
from o2o_diffusion.optimization import Optimizer
from o2o_diffusion.state import Stateful
from o2o_diffusion.types import Metrics, Transitions, TransitionSpec


class SmallLearner(Stateful):
    """A critic by one-step targets and a policy that clones; parameters are [...], or [K, ...] for K seeds."""

    def __init__(self, spec: TransitionSpec, seeds: list[int]):
        singles = [self.initial(spec, seed) for seed in seeds]
        stacked = {name: torch.stack([single[name] for single in singles]) for name in singles[0]}
        values = singles[0] if len(seeds) == 1 else stacked
        self.parameters = nn.ParameterDict({name: nn.Parameter(value) for name, value in values.items()})
        self.optimizer = Optimizer(self.parameters.values(), 1e-3)

    @staticmethod
    def initial(spec: TransitionSpec, seed: int) -> dict[str, Tensor]:
        """Weights of one seed: a critic ensemble of two, a policy."""
        with seeded(seed):
            inputs = spec.observation_dim + spec.action_dim
            return {"critic": torch.randn(2, inputs, 1), "actor": torch.randn(spec.observation_dim, spec.action_dim)}

    def q(self, observations: Tensor, actions: Tensor) -> Tensor:
        """[..., B, .] -> [..., E, B]."""
        x = torch.cat([observations, actions], -1).unsqueeze(-3)
        return (x @ self.parameters["critic"]).squeeze(-1)

    def update(self, batch: Transitions) -> Metrics:
        with torch.no_grad():
            next_actions = (batch.next_observations @ self.parameters["actor"]).tanh()
            target_q = batch.rewards + batch.discounts * self.q(batch.next_observations, next_actions).amin(-2)
        td_error = self.q(batch.observations, batch.actions) - target_q.unsqueeze(-2)
        clone_error = ((batch.observations @ self.parameters["actor"]).tanh() - batch.actions).square().sum(-1)
        loss = (batch.weights.unsqueeze(-2) * td_error.square()).sum(-2).mean(-1) + clone_error.mean(-1)
        return {"loss": self.optimizer.step(loss)}  # [] or [K]

"""Short stubs of methods that come later: they type-check, so the protocols hold them (see test_protocols.py)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from o2o_diffusion.protocols import Agent, Generator, Learner, Sampler
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import Budget, GeneratedShare, Phase, Shares, per_block, per_step
from o2o_diffusion.types import Episode, Metrics, Source, Transitions


class Stub:
    """What every learner here shares."""

    batch_size = 8

    def act(self, observations: Tensor, *, deterministic: bool = False) -> Tensor:
        return torch.zeros(len(observations), 2)

    def values(self, observations: Tensor, actions: Tensor) -> Tensor:
        return torch.zeros(len(observations))

    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        return -actions.square().sum(1)

    def update(self, batch: Transitions) -> Metrics:
        return {}

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        return (Phase("pretrain", updates=budget.pretrain_updates),)

    def begin_phase(self, phase: Phase, replay: Replay) -> None: ...

    def begin_episode(self) -> None: ...

    def end_episode(self, episode: Episode) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class APL(Stub):
    """Whole batches from one of two pools, conservatism by the row's own factor, blocks of updates."""

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        shares = Shares(offline=0.5, online=0.5, whole_batches=True)
        block = per_block(steps=1_000, updates=10_000)
        return (
            Phase("pretrain", updates=budget.pretrain_updates),
            Phase("finetune", env_steps=budget.online_steps, cadence=block, shares=shares),
        )

    def update(self, batch: Transitions) -> Metrics:
        penalty = self.values(batch.observations, self.act(batch.observations))
        return {"conservative_loss": (batch.regularization * penalty).mean()}


class APLSampler:
    """No conservatism on rows of the recent pool."""

    def begin_phase(self, shares: Shares) -> None: ...

    def update(self, replay: Replay, agent: Agent) -> Metrics:
        return {}

    def sample(self, replay: Replay, batch_size: int) -> Transitions:
        recent = replay.online[torch.arange(len(replay.online))[-batch_size:]]
        return recent.where(regularization=torch.zeros(len(recent)))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class OOO(Stub):
    """Explore with one learner, then train a fresh one on everything."""

    def phases(self, budget: Budget) -> tuple[Phase, ...]:
        explore = Phase("explore", env_steps=budget.online_steps, cadence=per_step(1))
        exploit = Phase("exploit", updates=budget.pretrain_updates, shares=Shares(0.5, 0.5), fresh=True)
        return (explore, exploit)


class OPAL(Stub):
    """Actions of the policy are latents of windows of an episode."""

    def begin_phase(self, phase: Phase, replay: Replay) -> None:
        pool, length = replay.offline, 10
        starts = torch.arange(max(len(pool) - length + 1, 0))
        whole = pool.episodes[starts] == pool.episodes[starts + length - 1]
        self.windows = pool[(starts[whole, None] + torch.arange(length)).flatten()]

    def act(self, observations: Tensor, *, deterministic: bool = False) -> Tensor:
        latent = torch.zeros(len(observations), 8)
        return self.decode(observations, latent)

    def decode(self, observations: Tensor, latent: Tensor) -> Tensor:
        return latent[:, :2].tanh()


class BOORL(Stub):
    """Several policies, one chosen per episode."""

    policies = 5
    active = 0

    def begin_episode(self) -> None:
        self.active = (self.active + 1) % self.policies

    def end_episode(self, episode: Episode) -> None:
        self.last_return = float(episode.rewards.sum())


class EDIS:
    """Energies learned from the agent's own actions guide the sampling; rows replace offline ones."""

    generated = GeneratedShare(share=0.2, replaces_offline=True)
    num_updates, num_samples, refresh_interval, first_refresh = 30_000, 100_000, 10_000, 10_000
    max_auc = 0.95

    def begin_refresh(self, replay: Replay, agent: Agent) -> None: ...

    def update(self, replay: Replay, agent: Agent) -> Metrics:
        batch = replay.online.all()
        return {"policy_energy": -agent.log_prob(batch.observations, agent.act(batch.observations)).mean()}

    def sample(
        self,
        num_samples: int,
        *,
        source: Source = Source.GENERATED_ONLINE,
        replay: Replay | None = None,
        agent: Agent | None = None,
    ) -> Transitions:
        assert replay is not None and agent is not None
        batch = replay.online.all()
        actions = batch.actions.detach().requires_grad_()
        gradient = torch.autograd.grad(agent.log_prob(batch.observations, actions).sum(), actions)[0]
        return batch.where(actions=(actions + gradient).detach())

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


learners: list[Learner] = [APL(), OOO(), OPAL(), BOORL()]
samplers: list[Sampler] = [APLSampler()]
generators: list[Generator] = [EDIS()]

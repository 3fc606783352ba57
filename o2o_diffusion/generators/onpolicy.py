"""On-policy rows at batch time: real states, the current policy's actions, and a model's outcomes.

As in MAD-TD (Voelcker et al., 2025), https://arxiv.org/abs/2410.08896, with a model that also knows from which world,
offline or online, a row comes: after a shift of the dynamics, an offline pair gets the outcome of the online world.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor

from o2o_diffusion.agents import require_agent
from o2o_diffusion.diffusion.sampling import Sampling
from o2o_diffusion.diffusion.training import DenoiserTraining
from o2o_diffusion.distributed import ShardedRng, seeded
from o2o_diffusion.generators.outcomes import DenoisedOutcomes, Dynamics, Endings, EnsembleOutcomes
from o2o_diffusion.optimization import batch_part
from o2o_diffusion.protocols import Agent
from o2o_diffusion.replay import Draw, Replay
from o2o_diffusion.schedule import GeneratedShare, Refresh
from o2o_diffusion.state import Stateful
from o2o_diffusion.types import REAL, UNKNOWN_RETURN, Metrics, Source, Transitions, TransitionSpec

STATISTICS_ROWS = 10_000
"""Number of rows drawn for the statistics of inputs and outcomes."""


class OnPolicy(Stateful):
    """Replaces action and outcome of drawn real rows; there is no pool that could become stale.

    Outcomes are those of the online world, or of the offline world while the model has seen no online rows. They are
    kept within the range of the real ones. There is no gate: the policy's actions are meant
    to differ from the data's.
    """

    @dataclass(frozen=True)
    class Config:
        """Defaults are sized for small networks on a CPU; the share is MAD-TD's order of magnitude."""

        share: Annotated[float, "share of generated rows in a batch", Interval(ge=0, le=1)] = 0.1
        online_share: Annotated[float, "share of generated rows with an online state", Interval(ge=0, le=1)] = 0.5
        actions: Annotated[Literal["policy", "data"], "the current policy's actions, or the real row's"] = "policy"
        model: Annotated[Literal["ensemble", "denoiser"], "regression ensemble, or conditional diffusion"] = "ensemble"
        differences: Annotated[bool, "predict s' - s instead of s'"] = False
        updates: Annotated[int, "optimizer steps of the first refresh", Ge(0)] = 3_000
        refresh_updates: Annotated[int, "optimizer steps of a later, warm-started refresh", Ge(0)] = 1_000
        refresh_interval: Annotated[int, "environment steps between refreshes", Ge(0)] = 1_000
        first_refresh: Annotated[int, "online rows before the first refresh", Ge(0)] = 1_000
        training_share: Annotated[float, "share of online rows in a training batch", Interval(ge=0, le=1)] = 0.5
        batch_size: Annotated[int, "rows per training batch, over all processes and members", Ge(1)] = 512
        learning_rate: Annotated[float, "initial learning rate of a refresh; cosine decay to 0", Gt(0)] = 2e-3
        ema_decay: Annotated[float, "decay of the weight average that makes rows", Interval(ge=0, lt=1)] = 0.98
        width: Annotated[int, "hidden units", Ge(1)] = 128
        depth: Annotated[int, "hidden layers of a member, or residual blocks of the denoiser", Ge(1)] = 2
        ensemble_size: Annotated[int, "members of the ensemble", Ge(1)] = 4
        noisy: Annotated[bool, "draw the ensemble's outcomes instead of taking their means"] = False
        sampling: Annotated[Sampling, "the denoiser's solver"] = field(
            default_factory=lambda: Sampling(num_steps=8, restarts=0)
        )

        def __post_init__(self):
            if self.batch_size % self.ensemble_size:
                raise ValueError(
                    f"'batch_size' is {self.batch_size}, expected a multiple of 'ensemble_size', {self.ensemble_size}"
                )

    config: Config
    state_fields = ("num_refreshes", "low", "high", "known")

    def __init__(self, config: Config, spec: TransitionSpec, *, seed: int, device: torch.device | str = "cpu"):
        batch_part(config.batch_size, "generator.batch_size")
        self.config, self.spec, self.device = config, spec, torch.device(device)
        with seeded(seed):
            self.model = self.build().to(self.device)
        self.training = DenoiserTraining(self.model, learning_rate=config.learning_rate, decay=config.ema_decay)
        self.rng, self.row_rng = ShardedRng(seed, self.device), ShardedRng(seed + 1, "cpu")
        self.shared_rng = ShardedRng(seed + 2, self.device, shared=False)  # the same rows on every process
        self.num_refreshes, self.known = 0, [False, False]
        self.low = self.high = torch.zeros(spec.observation_dim + 1, device=self.device)

    def build(self) -> Dynamics:
        """The model: state, action and label in; reward, next state and termination out."""
        c, dims = self.config, (self.spec.observation_dim + self.spec.action_dim + 1, self.spec.observation_dim + 1)
        sizes = {"width": c.width, "depth": c.depth}
        if c.model == "denoiser":
            model = DenoisedOutcomes(*dims, **sizes, sampling=c.sampling)
        else:
            model = EnsembleOutcomes(*dims, **sizes, size=c.ensemble_size, noisy=c.noisy)
        return Dynamics(model, Endings(*dims, **sizes))

    def share(self, replay: Replay) -> GeneratedShare:
        """`share` of the settings, made at batch time from offline and online states."""
        return GeneratedShare(self.config.share, online=self.config.online_share, at_batch_time=True)

    def next_refresh(self, replay: Replay) -> Refresh:
        """The next refresh, from the settings, with an open gate."""
        c = self.config
        updates = c.refresh_updates if self.num_refreshes else c.updates
        return Refresh(updates, first=c.first_refresh, interval=c.refresh_interval)

    def begin_refresh(self, replay: Replay, agent: Agent) -> None:
        """Fit statistics and limits to the current rows; reset the optimizer, keep the weights."""
        if self.config.actions == "policy":
            require_agent(agent)
        self.known = [len(replay.pools[source]) > 0 for source in REAL]
        batch = self.draw(replay, STATISTICS_ROWS, self.shared_rng)
        self.model.fit_normalizers(self.inputs(batch, batch.actions, batch.sources), self.outcomes(batch))
        pools = [replay.pools[source].all() for source in REAL if len(replay.pools[source])]
        outcomes = torch.cat([columns(pool) for pool in pools])
        self.low, self.high = outcomes.amin(0), outcomes.amax(0)
        self.training.begin(self.model, self.next_refresh(replay).updates)

    def update(self, replay: Replay, agent: Agent) -> Metrics:
        """Run one optimizer step."""
        model: Dynamics = self.training.network  # pyright: ignore[reportAssignmentType]
        batch = self.draw(replay, batch_part(self.config.batch_size, "generator.batch_size"), self.row_rng)
        inputs, outcomes = self.inputs(batch, batch.actions, batch.sources), self.outcomes(batch)
        loss = self.training.step(model.loss(inputs, outcomes, batch.terminations, self.rng), self.model)
        if self.training.num_done == self.training.num_steps:
            self.num_refreshes += 1
        return {"loss": loss}

    def draw(self, replay: Replay, size: int, rng: ShardedRng) -> Transitions:
        """`size` real rows, online ones with probability `training_share` if there are both kinds."""
        sizes = torch.tensor([len(replay.pools[source]) for source in REAL])
        online = self.config.training_share if sizes.all() else float(sizes[1] > 0)
        pools = (rng.uniform(size).cpu() < online).long()
        return replay.gather(Draw.create(rng.integers(sizes.to(rng.device)[pools], size).cpu(), pools))

    @torch.no_grad()
    def sample(self, num_samples: int, *, source: Source, replay: Replay, agent: Agent) -> Transitions:
        """`num_samples` rows from real states with the label of `source`, or any states if there are none."""
        if not replay.num_real:
            return self.spec.unflatten(torch.empty(0, self.spec.row_dim, device=self.device), source)
        pools = [pool for pool in (replay.pools[source.real], replay.offline, replay.online) if len(pool)]
        batch = pools[0][self.shared_rng.integers(len(pools[0]), num_samples)]
        made = self.rows(batch, agent, self.shared_rng)
        return made.where(sources=torch.full_like(made.sources, int(source)))

    @torch.no_grad()
    def augment(self, batch: Transitions, *, replay: Replay, agent: Agent) -> Transitions:
        """Replace action and outcome of the marked rows."""
        return batch.with_rows(batch.is_generated, self.rows(batch, agent, self.rng))

    def rows(self, batch: Transitions, agent: Agent, rng: ShardedRng) -> Transitions:
        """`batch` with other actions and their outcomes in the online world, if it is known."""
        actions = batch.actions
        if self.config.actions == "policy":
            actions = agent.act(batch.observations, rng=rng)
        world = torch.full_like(batch.sources, int(Source.ONLINE if self.known[1] else Source.OFFLINE))
        outcomes, terminations = self.model.sample(self.inputs(batch, actions, world), rng)
        if self.config.differences:
            outcomes[:, 1:] += batch.observations
        outcomes = outcomes.clamp(self.low, self.high)
        return batch.where(
            actions=actions,
            rewards=outcomes[:, 0],
            next_observations=outcomes[:, 1:],
            terminations=terminations,
            returns=torch.full_like(batch.returns, UNKNOWN_RETURN),
            next_actions=torch.full_like(batch.next_actions, torch.nan),
        )

    def inputs(self, batch: Transitions, actions: Tensor, worlds: Tensor) -> Tensor:
        """[B, input_dim] states, actions and labels."""
        return torch.cat([batch.observations, actions, worlds[:, None].float()], dim=1)

    def outcomes(self, batch: Transitions) -> Tensor:
        """[B, outcome_dim] rewards and next states (or their differences) of real rows."""
        outcomes = columns(batch)
        if self.config.differences:
            outcomes[:, 1:] -= batch.observations
        return outcomes


def columns(batch: Transitions) -> Tensor:
    """[B, 1 + observation_dim] reward and next state, as they are."""
    return torch.cat([batch.rewards[:, None], batch.next_observations], dim=1)

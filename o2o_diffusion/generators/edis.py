"""Energy-guided diffusion sampling, EDIS (Liu et al., ICML 2024), https://arxiv.org/abs/2407.12448.

An unconditional model of all transitions is tilted by three energies toward online states, the current policy's actions
and the dynamics of real rows: p(s) pi(a|s) p(s'|s, a).
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import torch
from annotated_types import Ge, Gt, Interval
from einops import rearrange, repeat
from torch import Tensor, nn

from o2o_diffusion.agents import require_agent
from o2o_diffusion.diffusion.guidance import Energy, GuidedRange, clean_energy_guided, energy_guided, noised_energy
from o2o_diffusion.diffusion.loss import contrastive_accuracy, contrastive_loss, draw_solver_sigma
from o2o_diffusion.diffusion.preconditioning import Denoiser
from o2o_diffusion.diffusion.training import DenoiserTraining
from o2o_diffusion.distributed import ShardedRng, gather, num_processes, seeded
from o2o_diffusion.errors import InputError
from o2o_diffusion.generators.base import DiffusionGenerator, proportional, ramped
from o2o_diffusion.networks.energy import EnergyMLP
from o2o_diffusion.optimization import batch_part
from o2o_diffusion.protocols import Agent
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import GeneratedShare
from o2o_diffusion.types import Metrics, Source, Transitions


class Factor(NamedTuple):
    """The conditioning fields of an energy, and the field moved by its gradient."""

    given: tuple[str, ...]
    moved: str


FACTORS = {
    "state": Factor((), "observations"),
    "policy": Factor(("observations",), "actions"),
    "transition": Factor(("observations", "actions"), "next_observations"),
}
"""The energies in training order."""

GUIDED = GuidedRange()


class EDIS(DiffusionGenerator):
    """SynthER's model of the union of offline and online rows, tilted by contrastively learned energies.

    An energy is the negative log ratio of two noised densities, of desired rows and of rows sampled with the energies
    so far: online states against the model's own, then the policy's actions against sampled ones in the same states,
    then real transitions against sampled ones. Sampled rows are used instead of rows inpainted given s, or given s and
    a: inpainting by replacement weakens the dependence between columns, and the energies would learn that. An energy
    moves only the columns of its factor, so that the ratio of the conditioning columns drops out.

    The authors' code trains and queries its energies at different noise levels, in different units, and adds gradients
    without the factor sigma^2; here noise levels are the solver's and rows are normalized. Scales, ramp and sizes are
    not the paper's. Without online rows there is no guidance.
    """

    @dataclass(frozen=True)
    class Config(DiffusionGenerator.Config):
        """Batches mix generated online-label rows and online rows, as for Cal-QL in the paper; sizes are for a CPU."""

        share: Annotated[
            float, "share of generated rows in a batch; the rest are online rows", Interval(ge=0, le=1)
        ] = 0.2
        outcome_noise: Annotated[
            float, "scale of whitened outcomes' residuals, which the transition energy moves", Ge(0)
        ] = 1.0
        state_scale: Annotated[float, "scale of the online state energy; 0: off", Ge(0)] = 1.0
        policy_scale: Annotated[float, "scale of the policy action energy; 0: off", Ge(0)] = 1.0
        transition_scale: Annotated[float, "scale of the real dynamics energy; 0: off", Ge(0)] = 1.0
        policy_energy: Annotated[
            Literal["learned", "log_prob"], "learned from policy actions, or -log pi(a|s) itself"
        ] = "learned"
        guidance_ramp: Annotated[int, "online rows at which guidance reaches full scale; 0: immediately", Ge(0)] = (
            10_000
        )
        energy_updates: Annotated[int, "optimizer steps per energy in a refresh, after the model's steps", Ge(0)] = 600
        energy_batch_size: Annotated[int, "positives per energy batch, over all processes", Ge(1)] = 128
        num_negatives: Annotated[int, "negatives per positive", Ge(1)] = 10
        energy_learning_rate: Annotated[float, "initial learning rate of a refresh; cosine decay to 0", Gt(0)] = 1e-3
        energy_hidden: Annotated[tuple[int, ...], "hidden layer widths of an energy", Ge(1)] = (256, 256, 256)
        pool_size: Annotated[int, "positives, and equally many negatives, to train each energy on", Ge(1)] = 10_000

    config: Config
    parts = ("energies",)
    state_fields = (*DiffusionGenerator.state_fields, "num_trained", "contrast_rows", "averages")

    def build(self) -> None:
        """Create the energies, flat at first; `num_trained` counts those trained in the current refresh."""
        c = self.config
        batch_part(c.energy_batch_size, "generator.energy_batch_size")
        self.acting_rng = ShardedRng(self.seed + 2, self.device, shared=False)  # the same actions on every process
        self.energies = self._new_energies(self.seed)
        self.energy_training = DenoiserTraining(
            self.energies["state"], learning_rate=c.energy_learning_rate, decay=c.ema_decay
        )
        self.num_trained = 0
        self.contrast_rows: dict[str, Tensor] = {}
        self.averages: Metrics = {}

    def share(self, replay: Replay) -> GeneratedShare:
        """`share` of the settings with the online label, replacing offline rows."""
        return GeneratedShare(share=self.config.share, online=1.0, replaces_offline=True)

    def training_mix(self, replay: Replay) -> tuple[float, float]:
        """The union of both pools."""
        return proportional(replay)

    @property
    def learned(self) -> list[str]:
        """The energies to train."""
        c = self.config
        used = [name for name in FACTORS if getattr(c, f"{name}_scale")]
        return [name for name in used if name != "policy" or c.policy_energy == "learned"]

    @property
    def num_updates(self) -> int:
        """Optimizer steps of the model, then of each energy in turn."""
        return self.model_updates + self.config.energy_updates * len(self.learned)

    def begin_refresh(self, replay: Replay, agent: Agent) -> None:
        """Start a refresh with warm weights but flat energies, because their negatives are redrawn."""
        self._check(agent)
        super().begin_refresh(replay, agent)
        if self.config.from_scratch:
            self.energies.load_state_dict(self._new_energies(self.seed + self.num_refreshes).state_dict())
        for energy in self.energies.values():
            energy.flatten()  # pyright: ignore[reportCallIssue]
        self.num_trained, self.contrast_rows, self.averages = 0, {}, {}

    def update(self, replay: Replay, agent: Agent) -> Metrics:
        """Take one step of the model or, once it is trained, of the next energy.

        Metrics are running averages over the refresh; chance accuracy is 1 / (1 + num_negatives).
        """
        metrics: Metrics = {}
        if self.training.num_done < self.training.num_steps:
            metrics = super().update(replay, agent)
        elif self.num_trained < len(self.learned) and len(replay.online):
            metrics = self.update_energy(self.learned[self.num_trained], replay, agent)
        for name, value in metrics.items():
            self.averages[name] = torch.lerp(self.averages.get(name, value), value, 0.02)
        return dict(self.averages)

    def update_energy(self, name: str, replay: Replay, agent: Agent) -> Metrics:
        """Take one step of one energy; draw its rows before the first step."""
        if not self.contrast_rows:
            self.contrast_rows = self.draw(name, replay, agent)
            self.energy_training.begin(self.energies[name], self.config.energy_updates)
        positives, negatives = self.contrast()
        loss = self.energy_training.step(contrastive_loss(positives, negatives), self.energies[name])
        if self.energy_training.num_done == self.energy_training.num_steps:
            self.num_trained, self.contrast_rows = self.num_trained + 1, {}
        return {f"{name}_loss": loss, f"{name}_accuracy": contrastive_accuracy(positives.detach(), negatives.detach())}

    def contrast(self) -> tuple[Tensor, Tensor]:
        """Energies of positives [B] and their negatives [B, K], each group at one noise level in the guided range."""
        size = batch_part(self.config.energy_batch_size, "generator.energy_batch_size")
        counts = {"positives": 1, "negatives": self.config.num_negatives}
        chosen = [self._choose(self.contrast_rows[kind], size, count) for kind, count in counts.items()]
        x = torch.cat(chosen, dim=1)  # [B, 1 + K, D]
        uniform = self.rng.uniform(size, 1, 1)
        sigma = draw_solver_sigma(uniform, GUIDED.sigma_min, GUIDED.sigma_max, self.model.rho)  # one per group
        x = x + sigma * self.rng.normal(*x.shape)
        energy = noised_energy(self.energy_training.network, self.model.sigma_data)
        sigmas = repeat(sigma, "b 1 1 -> (b k) 1", k=x.shape[1])
        energies = rearrange(energy(rearrange(x, "b k d -> (b k) d"), sigmas), "(b k) -> b k", b=size)
        return energies[:, 0], energies[:, 1:]

    def draw(self, name: str, replay: Replay, agent: Agent) -> dict[str, Tensor]:
        """Coordinates of positives (low energy) and negatives (rows sampled with the energies trained so far).

        Positives of the policy energy are sampled rows with the policy's actions; the others are real rows.
        """
        negatives = self.sample(self.config.pool_size, source=Source.GENERATED_ONLINE, replay=replay, agent=agent)
        if name == "policy":
            positives = negatives.where(actions=agent.act(negatives.observations, rng=self.acting_rng))
        else:
            positives = self.real_positives(name, replay)
        pool = {"positives": positives, "negatives": negatives}
        return {kind: self.model.layout.encode(self.spec.flatten(batch), -1) for kind, batch in pool.items()}

    def real_positives(self, name: str, replay: Replay) -> Transitions:
        """Real rows, online for the state energy, of the union for the transition energy; the same on every process."""
        first = 0 if name == "transition" else len(replay.offline)
        part = -(-self.config.pool_size // num_processes())
        rows = gather(self.row_rng.integers(replay.num_real - first, part).to(self.device))[: self.config.pool_size]
        return replay.gather(replay.union(first + rows))

    def denoiser(self, size: int, source: Source, replay: Replay, agent: Agent) -> Denoiser:
        """The model tilted by the energies; the plain model for rows of the offline label."""
        if source == Source.GENERATED_OFFLINE:
            return self.model
        c, online = self.config, int(self.model.pool_rows[1])
        scales = {name: ramped(getattr(c, f"{name}_scale"), online, c.guidance_ramp) for name in FACTORS}
        energies = {name: noised_energy(self.energies[name], self.model.sigma_data) for name in self.learned}
        terms = [Energy(energy, self._columns(FACTORS[name].moved), scales[name]) for name, energy in energies.items()]
        denoise = energy_guided(self.model, terms, GUIDED)
        if c.policy_energy == "learned" or scales["policy"] == 0:
            return denoise
        policy = Energy(lambda x: self.policy_energy(x, agent), self._columns("actions"), scales["policy"])
        return clean_energy_guided(denoise, policy, GUIDED, sigma_data=self.model.sigma_data)

    def policy_energy(self, x: Tensor, agent: Agent) -> Tensor:
        """[B] -log pi(a|s) of coordinates `x`, differentiable in `x`."""
        return -agent.log_prob(*self.model.layout.actions(x))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state`, possibly from another device."""
        super().load_state_dict(state)
        self.contrast_rows, self.averages = (
            {name: value.to(self.device) for name, value in values.items()}
            for values in (self.contrast_rows, self.averages)
        )

    def _new_energies(self, seed: int) -> nn.ModuleDict:
        """Flat energies with weights that depend only on `seed`."""
        with seeded(seed):
            energies = {
                name: EnergyMLP(self._columns(*given, moved), hidden=self.config.energy_hidden)
                for name, (given, moved) in FACTORS.items()
            }
        return nn.ModuleDict(energies).to(self.device)

    def _choose(self, pool: Tensor, size: int, count: int) -> Tensor:
        """[size, count, row_dim] random rows of `pool`."""
        return pool[self.row_rng.integers(len(pool), size, count).to(self.device)]

    def _columns(self, *fields: str) -> Tensor:
        """[row_dim] mask of the columns of `fields`."""
        chosen = torch.zeros(self.spec.row_dim, dtype=torch.bool, device=self.device)
        for field in fields:
            chosen[self.spec.columns[field]] = True
        return chosen

    def _check(self, agent: Agent) -> None:
        """Raise InputError before any training if `agent` cannot provide the policy energy."""
        if self.config.policy_scale == 0:
            return
        require_agent(agent)
        if self.config.policy_energy == "learned":
            return
        spec = self.spec
        zeros = (torch.zeros(1, dim, device=self.device) for dim in (spec.observation_dim, spec.action_dim))
        try:
            agent.log_prob(*zeros)
        except TypeError as error:
            wrong = "'log_prob' needs a stochastic policy; expected 'learned'"
            raise InputError(f"setting 'generator.policy_energy': {wrong}") from error

"""Energy-guided diffusion sampling, EDIS (Liu et al., ICML 2024), https://arxiv.org/abs/2407.12448.

An unconditional model of all transitions is tilted by three energies towards the states met online, the actions of the
present policy and the dynamics of real rows: p(s) pi(a|s) p(s'|s, a).
"""

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor, nn

from o2o_diffusion.diffusion.guidance import Energy, GuidedRange, clean_energy_guided, energy_guided, noised_energy
from o2o_diffusion.diffusion.loss import contrastive_accuracy, contrastive_loss, draw_solver_sigma
from o2o_diffusion.diffusion.preconditioning import Denoiser
from o2o_diffusion.diffusion.training import DenoiserTraining
from o2o_diffusion.distributed import broadcast, gather, num_processes, rank
from o2o_diffusion.errors import InputError
from o2o_diffusion.generators.base import DiffusionGenerator, proportional, ramped
from o2o_diffusion.networks.energy import EnergyMLP
from o2o_diffusion.protocols import Agent
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import GeneratedShare
from o2o_diffusion.types import Metrics, Source, Transitions


class Factor(NamedTuple):
    """Fields that an energy takes as given, and the field that its gradient moves."""

    given: tuple[str, ...]
    moved: str


FACTORS = {
    "state": Factor((), "observations"),
    "policy": Factor(("observations",), "actions"),
    "transition": Factor(("observations", "actions"), "next_observations"),
}
"""The energies, in the order in which they are trained."""

GUIDED = GuidedRange()


class EDIS(DiffusionGenerator):
    """SynthER's model of the union of offline and online rows, tilted by energies learned by contrast.

    An energy is -log of the ratio of two densities under noise, of rows that are wanted and of rows as they are drawn
    so far: online states against the model's own, then the policy's actions against those drawn in the same states,
    then real transitions against drawn ones. Drawn rows serve in place of rows inpainted given s, or given s and a:
    inpainting by replacement weakens the dependence between columns, and the energies would learn that. An
    energy moves the columns of its factor only, so that the ratio of what it takes as given drops out.

    The authors' code trains and queries its energies at different noise levels, in different units, and adds gradients
    without the factor sigma^2; here noise levels are the solver's and rows are normalised. Scales, ramp and sizes are
    defaults of ours. Without online rows there is no guidance.
    """

    @dataclass(frozen=True)
    class Config(DiffusionGenerator.Config):
        """Rows of the online label beside online rows only, as the paper has it for Cal-QL; sizes are for a CPU."""

        share: Annotated[float, "share of generated rows in a batch; the others are online rows"] = 0.2
        state_scale: Annotated[float, "strength of the energy of online states; 0: off"] = 1.0
        policy_scale: Annotated[float, "strength of the energy of the policy's actions; 0: off"] = 1.0
        transition_scale: Annotated[float, "strength of the energy of real dynamics; 0: off"] = 1.0
        policy_energy: Annotated[
            Literal["learned", "log_prob"], "learned from the policy's actions, or -log pi(a|s) itself"
        ] = "learned"
        guidance_ramp: Annotated[int, "online rows at which the scales are reached; 0: at once"] = 10_000
        energy_updates: Annotated[int, "optimiser steps of each energy in a refresh, after those of the model"] = 600
        energy_batch_size: Annotated[int, "positives in a batch of an energy, over all processes"] = 128
        num_negatives: Annotated[int, "negatives for each positive"] = 10
        energy_learning_rate: Annotated[float, "at the beginning of a refresh; falls to 0 along a cosine"] = 1e-3
        energy_hidden: Annotated[tuple[int, ...], "widths of the hidden layers of an energy"] = (256, 256, 256)
        pool_size: Annotated[int, "positives, and as many negatives, that each energy is trained on"] = 10_000

    config: Config
    parts = ("energies",)
    counters = (*DiffusionGenerator.counters, "num_trained", "pool", "averages")

    def build(self) -> None:
        """The energies, flat at first; `num_trained` of them are done in the present refresh."""
        c = self.config
        if c.energy_batch_size % num_processes():
            divided = f"can't be divided among {num_processes()} processes"
            raise InputError(f"setting 'generator.energy_batch_size': {c.energy_batch_size} {divided}")
        self.energies = self._new_energies(self.seed)
        self.energy_training = DenoiserTraining(
            self.energies["state"], learning_rate=c.energy_learning_rate, decay=c.ema_decay
        )
        self.num_trained = 0
        self.pool: dict[str, Tensor] = {}
        self.averages: Metrics = {}

    def wanted(self) -> GeneratedShare:
        """Rows of the online label, in place of offline ones."""
        return GeneratedShare(share=self.config.share, online=1.0, replaces_offline=True)

    def shares(self, replay: Replay) -> tuple[float, float]:
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
        """Optimiser steps of the model, then of one energy after the other."""
        return self.denoiser_updates + self.config.energy_updates * len(self.learned)

    def begin_refresh(self, replay: Replay, agent: Agent) -> None:
        """Warm weights everywhere, but flat energies: what they are learned against is drawn anew."""
        self._check(agent)
        super().begin_refresh(replay, agent)
        if self.config.from_scratch:
            self.energies.load_state_dict(self._new_energies(self.seed + self.num_refreshes).state_dict())
        for energy in self.energies.values():
            energy.flatten()  # pyright: ignore[reportCallIssue]
        self.num_trained, self.pool, self.averages = 0, {}, {}

    def update(self, replay: Replay, agent: Agent) -> Metrics:
        """One optimiser step of the model, and when it is done, of the energy whose turn it is.

        Metrics are running averages over the refresh; an accuracy of 1 / (1 + num_negatives) is that of a guess.
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
        """One step of one energy; before the first, its rows are drawn."""
        if not self.pool:
            self.pool = self.draw(name, replay, agent)
            self.energy_training.begin(self.energies[name], self.config.energy_updates)
        positives, negatives = self.contrast()
        loss = self.energy_training.step(contrastive_loss(positives, negatives), self.energies[name])
        if self.energy_training.num_done == self.energy_training.num_steps:
            self.num_trained, self.pool = self.num_trained + 1, {}
        return {f"{name}_loss": loss, f"{name}_accuracy": contrastive_accuracy(positives.detach(), negatives.detach())}

    def contrast(self) -> tuple[Tensor, Tensor]:
        """Energies of positives [B] and their negatives [B, K], each group at one level among those that guide."""
        size, count = self.config.energy_batch_size // num_processes(), self.config.num_negatives
        chosen = [self._choose(self.pool["positives"], size, 1), self._choose(self.pool["negatives"], size, count)]
        x = torch.cat(chosen, dim=1)  # [B, 1 + K, D]
        uniform = self.noise.uniform(size, 1, 1)
        sigma = draw_solver_sigma(uniform, GUIDED.sigma_min, GUIDED.sigma_max, self.model.rho).expand(*x.shape[:2], 1)
        x = x + sigma * self.noise.normal(*x.shape)
        energy = noised_energy(self.energy_training.network, self.model.sigma_data)
        energies = energy(x.flatten(0, 1), sigma.flatten(0, 1)).view(size, 1 + count)
        return energies[:, 0], energies[:, 1:]

    def draw(self, name: str, replay: Replay, agent: Agent) -> dict[str, Tensor]:
        """Normalised rows of which the energy is to be low, and rows as they are drawn so far: later energies are flat.

        Positives of the policy's energy are the drawn rows with the policy's actions, the others real rows.
        """
        negatives = self.sample(self.config.pool_size, replay=replay, agent=agent)
        if name == "policy":
            actions = torch.empty_like(negatives.actions)
            if rank() == 0:  # only the main process acts
                actions.copy_(agent.act(negatives.observations))
            positives = negatives.where(actions=broadcast(actions))
        else:
            positives = self.real_positives(name, replay)
        pool = {"positives": positives, "negatives": negatives}
        return {kind: self.model.normalize(self.spec.flatten(batch)) for kind, batch in pool.items()}

    def real_positives(self, name: str, replay: Replay) -> Transitions:
        """Real rows: online ones for the state energy, of the union for that of transitions; alike on every process."""
        offline = len(replay.offline) if name == "transition" else 0
        draws = gather(self.row_noise.uniform(-(-self.config.pool_size // num_processes())).to(self.device))
        rows = (draws[: self.config.pool_size].double() * (offline + len(replay.online))).long()
        online = (rows >= offline).long()
        return replay.gather(rows - offline * online, online)

    def denoiser(self, size: int, source: Source, replay: Replay | None, agent: Agent | None) -> Denoiser:
        """The model tilted by the energies; rows of the offline label are the model's own."""
        if source == Source.GENERATED_OFFLINE:
            return self.model
        c, online = self.config, int(self.model.pool_rows[1])
        scales = {name: ramped(getattr(c, f"{name}_scale"), online, c.guidance_ramp) for name in FACTORS}
        energies = {name: noised_energy(self.energies[name], self.model.sigma_data) for name in self.learned}
        terms = [Energy(energy, self._columns(FACTORS[name].moved), scales[name]) for name, energy in energies.items()]
        denoise = energy_guided(self.model, terms, GUIDED)
        if c.policy_energy == "learned" or scales["policy"] == 0:
            return denoise
        if agent is None:
            raise InputError("setting 'generator.policy_energy': with 'log_prob' rows can't be drawn without a policy")
        policy = Energy(lambda x: self.policy_energy(x, agent), self._columns("actions"), scales["policy"])
        return clean_energy_guided(denoise, policy, GUIDED, sigma_data=self.model.sigma_data)

    def policy_energy(self, x: Tensor, agent: Agent) -> Tensor:
        """[B] -log pi(a|s) of normalised rows, differentiable in them."""
        rows, columns = x * self.model.std + self.model.mean, self.spec.columns
        return -agent.log_prob(rows[:, columns["observations"]], rows[:, columns["actions"]])

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state`, which may come from another device."""
        super().load_state_dict(state)
        self.pool, self.averages = (
            {name: value.to(self.device) for name, value in values.items()} for values in (self.pool, self.averages)
        )

    def _new_energies(self, seed: int) -> nn.ModuleDict:
        """Flat energies whose weights depend on `seed` only."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            energies = {
                name: EnergyMLP(self._columns(*given, moved), hidden=self.config.energy_hidden)
                for name, (given, moved) in FACTORS.items()
            }
        return nn.ModuleDict(energies).to(self.device)

    def _choose(self, pool: Tensor, size: int, count: int) -> Tensor:
        """[size, count, row_dim] random rows of `pool`."""
        rows = (self.row_noise.uniform(size, count).double() * len(pool)).long()
        return pool[rows.to(self.device)]

    def _columns(self, *fields: str) -> Tensor:
        """[row_dim], true in the columns of `fields`."""
        chosen = torch.zeros(self.spec.row_dim, dtype=torch.bool, device=self.device)
        for field in fields:
            chosen[self.spec.columns[field]] = True
        return chosen

    def _check(self, agent: Agent) -> None:
        """Raise InputError before anything is trained when `agent` can't serve the policy's energy."""
        if self.config.policy_scale == 0:
            return
        if agent is None:
            raise InputError("setting 'generator.policy_scale': the policy's energy needs a policy; 0 does without")
        if self.config.policy_energy == "learned":
            _ = agent.act  # what stands in for a missing policy says so
            return
        spec = self.spec
        zeros = (torch.zeros(1, dim, device=self.device) for dim in (spec.observation_dim, spec.action_dim))
        try:
            agent.log_prob(*zeros)
        except TypeError as error:
            wrong = "'log_prob' needs a stochastic policy; expected 'learned'"
            raise InputError(f"setting 'generator.policy_energy': {wrong}") from error

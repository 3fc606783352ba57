"""What diffusion generators have in common: one model of transitions, trained in refreshes and drawn from.

The base is SynthER's elucidated diffusion of transitions (Lu et al., 2023), https://arxiv.org/abs/2303.06614. A method
says what it trains on, what its rows are conditioned on, and how drawing is guided.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from o2o_diffusion.diffusion.loss import denoising_loss, draw_sigma
from o2o_diffusion.diffusion.preconditioning import Denoiser, precondition
from o2o_diffusion.diffusion.solvers import dpm_scheduler, karras_sigmas, sample_dpm, sample_heun
from o2o_diffusion.diffusion.training import DenoiserTraining
from o2o_diffusion.distributed import Noise, gather, num_processes, shard
from o2o_diffusion.errors import InputError
from o2o_diffusion.generators.model import TransitionDenoiser
from o2o_diffusion.generators.pretrained import (
    find_folder,
    load_model,
    load_part,
    push,
    read_facts,
    read_settings,
    save_folder,
)
from o2o_diffusion.protocols import Agent
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import GeneratedShare
from o2o_diffusion.state import Stateful
from o2o_diffusion.types import Metrics, Source, Transitions, TransitionSpec


class DiffusionGenerator(Stateful, ABC):
    """A denoiser of transitions; `condition` is what its rows are conditioned on.

    `parts` names modules besides the model that sampling needs and a folder therefore holds.
    """

    @dataclass(frozen=True)
    class Config:
        """Defaults are for a CPU."""

        share: Annotated[float, "share of generated rows in a batch"] = 0.5
        updates: Annotated[int, "optimiser steps of the first refresh"] = 8_000
        refresh_updates: Annotated[int, "optimiser steps of a later, warm-started refresh"] = 2_000
        num_samples: Annotated[int, "rows drawn after a refresh"] = 20_000
        refresh_interval: Annotated[int, "environment steps between refreshes"] = 4_000
        first_refresh: Annotated[int, "online rows before the first refresh"] = 2_000
        max_auc: Annotated[float, "a refresh that a classifier tells from real rows better is not used; 1: all are"] = (
            0.95
        )
        from_scratch: Annotated[bool, "forget the weights at each refresh"] = False
        pretrained: Annotated[str | None, "folder of a saved generator to start from; its network sizes win"] = None
        batch_size: Annotated[int, "rows of a training batch, over all processes"] = 512
        learning_rate: Annotated[float, "at the beginning of a refresh; falls to 0 along a cosine"] = 2e-3
        ema_decay: Annotated[float, "decay of the weights' average, which is what samples"] = 0.995
        width: Annotated[int, "hidden units"] = 256
        depth: Annotated[int, "residual blocks"] = 4
        embedding_dim: Annotated[int, "width of the embedding of noise level and condition"] = 128
        differences: Annotated[bool, "model s' - s in place of s', so that one small step is learned exactly"] = True
        solver: Annotated[Literal["dpm", "heun"], "DPM-Solver++ 2M, or the papers' stochastic Heun"] = "dpm"
        num_steps: Annotated[int, "solver steps"] = 16
        churn: Annotated[float, "Heun's added noise; 0: deterministic"] = 80.0
        restarts: Annotated[
            int | None, "times that rows are put under noise and solved again; null: 8, or 0 for heun and start_sigma"
        ] = None
        restart_sigma: Annotated[float, "noise of the first restart, in standard deviations of a column"] = 1.0
        restart_sigma_min: Annotated[float, "noise of the last of several, towards which it falls geometrically"] = 0.03
        restart_steps: Annotated[int, "solver steps of a restart"] = 6
        start_sigma: Annotated[float | None, "noise on real offline rows to start from; null: start from noise"] = None
        sample_batch_size: Annotated[int, "rows denoised at a time"] = 4_096

    config: Any
    condition: Literal["none", "label", "score"] = "none"
    parts: tuple[str, ...] = ()
    counters = ("num_refreshes", "num_dropped")

    def __init__(self, config: Any, spec: TransitionSpec, *, seed: int, device: torch.device | str = "cpu"):
        if config.batch_size % num_processes():
            divided = f"can't be divided among {num_processes()} processes"
            raise InputError(f"setting 'generator.batch_size': {config.batch_size} {divided}")
        for name in ("start_sigma", "restart_sigma", "restart_sigma_min"):
            if (sigma := getattr(config, name)) is not None and sigma <= 0:
                raise InputError(f"setting 'generator.{name}': {sigma}, expected more than 0")
        if config.restart_sigma_min > config.restart_sigma:
            raise InputError(
                f"setting 'generator.restart_sigma_min': {config.restart_sigma_min}, "
                f"expected at most restart_sigma, {config.restart_sigma}"
            )
        if (config.restarts or 0) < 0 or config.restart_steps < 1:
            counts = f"{config.restarts}, 'generator.restart_steps': {config.restart_steps}"
            raise InputError(f"settings 'generator.restarts': {counts}, expected at least 0 and at least 1")
        self.config, self.spec, self.seed, self.device = config, spec, seed, torch.device(device)
        self.generated = self.wanted()
        self.num_samples, self.max_auc = config.num_samples, config.max_auc
        self.refresh_interval, self.first_refresh = config.refresh_interval, config.first_refresh
        self.noise, self.row_noise = Noise(seed, self.device), Noise(seed + 1, "cpu")
        self.model = self._model()
        self.training = DenoiserTraining(self.model.network, learning_rate=config.learning_rate, decay=config.ema_decay)
        self.num_refreshes = self.num_dropped = 0
        self.facts: dict[str, Any] = {}  # what it was made from, for the model card
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.build()
        for name in self.parts if config.pretrained else ():
            load_part(find_folder(config.pretrained), name, getattr(self, name))

    def build(self) -> None:
        """Make the parts."""

    @abstractmethod
    def shares(self, replay: Replay) -> Sequence[float]:
        """Shares of offline and online rows in a training batch, summing to 1."""

    def wanted(self) -> GeneratedShare:
        """What the method wants of a batch: rows with the online label, unless it says otherwise."""
        return GeneratedShare(share=self.config.share)

    def conditions(self, batch: Transitions) -> Tensor | None:
        """[B] conditions of real rows in training; None where the model has none."""
        return None

    def denoiser(self, size: int, source: Source, replay: Replay | None, agent: Agent | None) -> Denoiser:
        """The guided model for `size` new rows of this process."""
        return self.model

    @property
    def num_updates(self) -> int:
        """Optimiser steps of the present refresh, or of the next one; a method adds those of its parts."""
        return self.denoiser_updates

    @property
    def denoiser_updates(self) -> int:
        """Optimiser steps of the denoiser in it."""
        warm = (self.num_refreshes > 0 or self.config.pretrained is not None) and not self.config.from_scratch
        return self.config.refresh_updates if warm else self.config.updates

    def begin_refresh(self, replay: Replay, agent: Agent) -> None:
        """Fit normaliser and limits to what the replay holds now; warm weights, fresh optimiser."""
        self.model.fit([replay.offline, replay.online], self.shares(replay))
        if self.config.from_scratch:
            fresh = self._new_model(self.seed + self.num_refreshes)
            self.model.network.load_state_dict(fresh.network.state_dict())
        self.training.begin(self.model.network, self.denoiser_updates)

    def update(self, replay: Replay, agent: Agent) -> Metrics:
        """One optimiser step."""
        loss = self.training.step(self.loss(self.real_rows(replay)), self.model.network)
        if self.training.num_done == self.training.num_steps:
            self.num_refreshes += 1
        return {"loss": loss}

    def loss(self, batch: Transitions) -> Tensor:
        """Denoising loss of real rows."""
        x, conditions = self.model.normalize(self.spec.flatten(batch)), self.conditions(batch)
        given = () if conditions is None else (conditions,)
        network = precondition(self.training.network, self.model.sigma_data)
        sigma = draw_sigma(self.noise.normal(len(x), 1))
        noise = self.noise.normal(*x.shape)
        return denoising_loss(lambda x, sigma: network(x, sigma, *given), x, sigma, noise, self.model.sigma_data)

    def real_rows(self, replay: Replay) -> Transitions:
        """This process's part of a training batch: the exact `shares` of both pools, spread evenly over their rows."""
        offline, _ = self.shares(replay)
        strata = shard(torch.arange(self.config.batch_size, dtype=torch.float64))
        positions = (strata + self.row_noise.uniform(len(strata))) / self.config.batch_size
        pools = (positions >= offline).long()
        within = torch.where(
            pools == 0, positions / max(offline, 1e-12), (positions - offline) / max(1 - offline, 1e-12)
        )
        sizes = torch.tensor([len(replay.offline), len(replay.online)])[pools]
        rows = torch.minimum((within * sizes).long(), sizes - 1)
        return replay.gather(rows.to(self.device), pools.to(self.device))

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        source: Source = Source.GENERATED_ONLINE,
        replay: Replay | None = None,
        agent: Agent | None = None,
    ) -> Transitions:
        """At most `num_samples` transitions labelled `source`: rows that are not finite are dropped and counted."""
        rows = [torch.empty(0, self.spec.row_dim, device=self.device)]
        for start in range(0, num_samples, self.config.sample_batch_size):
            size = min(self.config.sample_batch_size, num_samples - start)
            part = -(-size // num_processes())  # the processes share the work and all get all of it
            denoise = self.denoiser(part, source, replay, agent)
            rows.append(gather(self.solve(denoise, self.start(part, replay)))[:size])
        valid = self.model.postprocess(torch.cat(rows))
        self.num_dropped += num_samples - len(valid)
        return self.spec.unflatten(valid, source)

    def start(self, size: int, replay: Replay | None) -> Tensor:
        """[size, row_dim] normalised rows to denoise: noise, or real offline rows under noise (`start_sigma`)."""
        noise, sigma = self.noise.normal(size, self.spec.row_dim), self.config.start_sigma
        if sigma is None:
            return self.model.sigma_max * noise
        if replay is None or not len(replay.offline):
            raise InputError("setting 'generator.start_sigma' needs offline rows to start from; there are none")
        rows = (self.row_noise.uniform(size).double() * len(replay.offline)).long()
        real = self.model.normalize(self.spec.flatten(replay.offline[rows.to(self.device)]))
        return real + sigma * noise

    @property
    def restarts(self) -> int:
        """Heun corrects itself by its own noise, and rows that begin as real ones should stay near them."""
        config = self.config
        if config.restarts is not None:
            return config.restarts
        return 8 if config.solver == "dpm" and config.start_sigma is None else 0

    def solve(self, denoise: Denoiser, x: Tensor) -> Tensor:
        """[B, row_dim] clean rows, from noisy x at the first level.

        Restarts are those of Xu et al. (2023), https://arxiv.org/abs/2306.14878, solved by DPM, each from less noise
        than the one before: what the solver or the model got wrong at a level contracts when rows come down from it
        again, first how gross features fit each other, then how an outcome fits its state and action.
        """
        config, model = self.config, self.model
        highest = config.start_sigma or model.sigma_max
        if config.solver == "dpm":
            x = self._descend(denoise, x, highest, config.num_steps)
        else:
            sigmas = karras_sigmas(config.num_steps, model.sigma_min, highest, model.rho)
            x = sample_heun(denoise, x, sigmas, churn=config.churn, normal=self.noise.normal)
        first = min(config.restart_sigma, highest)  # rows that began near real ones stay there
        for sigma in np.geomspace(first, min(config.restart_sigma_min, first), self.restarts).tolist():
            x = self._descend(denoise, x + sigma * self.noise.normal(*x.shape), sigma, config.restart_steps)
        return x

    def _descend(self, denoise: Denoiser, x: Tensor, sigma: float, num_steps: int) -> Tensor:
        """x [B, row_dim] from noise level `sigma` to 0."""
        model = self.model
        return sample_dpm(denoise, x, dpm_scheduler(model.sigma_min, sigma, model.rho, model.sigma_data), num_steps)

    def save_pretrained(self, folder: str | Path) -> None:
        """Save what sampling needs to `folder` in diffusers' format, with a model card; complete or not at all."""
        target = f"{type(self).__module__}.{type(self).__qualname__}"
        settings = {"target": target, **asdict(replace(self.config, pretrained=None))}
        save_folder(Path(folder), self.model, {name: getattr(self, name) for name in self.parts}, settings, self.facts)

    def push_to_hub(
        self, repo_id: str, *, license: str | None = None, private: bool = False, token: str | None = None
    ) -> str:
        """Upload to the hub's repository `repo_id` (owner/name), made where it is missing; returns its address."""
        self.facts = self.facts | ({"license": license} if license else {})
        return push(self.save_pretrained, repo_id, private=private, token=token)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        spec: TransitionSpec | None = None,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> Self:
        """The generator saved in `folder`, or under a hub id.

        Raises InputError when a file is missing or was altered, or `spec` has other columns.
        """
        found = find_folder(folder)
        settings = {"restarts": 0} | read_settings(found)  # folders without a word of them were drawn from without
        settings.pop("target")
        config = cls.Config(**{**settings, "pretrained": str(found)})
        generator = cls(config, spec or TransitionDenoiser.from_pretrained(found).spec, seed=seed, device=device)
        generator.facts = read_facts(found)
        return generator

    def _model(self) -> TransitionDenoiser:
        """The pretrained model, or a new one."""
        if not self.config.pretrained:
            return self._new_model(self.seed)
        folder = find_folder(self.config.pretrained)
        return load_model(folder, self.spec, self.condition).to(self.device)  # pyright: ignore[reportArgumentType]

    def _new_model(self, seed: int) -> TransitionDenoiser:
        """A model whose weights depend on `seed` only."""
        sizes = {name: getattr(self.config, name) for name in ("width", "depth", "embedding_dim", "differences")}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = TransitionDenoiser.create(self.spec, condition=self.condition, **sizes)
        return model.to(self.device)  # pyright: ignore[reportArgumentType]


def proportional(replay: Replay) -> tuple[float, float]:
    """Shares of offline and online rows in the union of both pools."""
    total = max(len(replay.offline) + len(replay.online), 1)
    return len(replay.offline) / total, len(replay.online) / total


def ramped(scale: float, online_rows: int, ramp: int) -> float:
    """`scale`, earned by the online rows there are: all of it from `ramp` rows on, or at once with `ramp` 0."""
    return scale * min(1.0, online_rows / ramp) if ramp else scale

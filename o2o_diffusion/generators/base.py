"""Base class of the diffusion generators: a transition model, trained in refreshes and sampled.

The model is SynthER's elucidated diffusion of transitions (Lu et al., 2023), https://arxiv.org/abs/2303.06614.
Subclasses define the training rows, their conditions and the guidance of sampling.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor

from o2o_diffusion.diffusion.loss import denoising_loss, draw_sigma
from o2o_diffusion.diffusion.preconditioning import Denoiser, precondition
from o2o_diffusion.diffusion.sampling import Sampling, solve
from o2o_diffusion.diffusion.training import DenoiserTraining
from o2o_diffusion.distributed import ShardedRng, gather, num_processes, seeded, shard
from o2o_diffusion.errors import InputError
from o2o_diffusion.generators.model import TransitionDenoiser
from o2o_diffusion.generators.pretrained import (
    find_folder,
    load_model,
    load_part,
    push,
    read_settings,
    save_folder,
)
from o2o_diffusion.generators.whitening import Whitening
from o2o_diffusion.optimization import batch_part
from o2o_diffusion.protocols import Agent
from o2o_diffusion.replay import Draw, Replay
from o2o_diffusion.schedule import Gate, GeneratedShare, Refresh
from o2o_diffusion.state import Stateful
from o2o_diffusion.types import Metrics, Source, Transitions, TransitionSpec


class DiffusionGenerator(Stateful, ABC):
    """A generator with a transition denoiser; `condition` is the kind of condition on its rows.

    `parts` names the modules besides the model that sampling needs; they are saved with it.
    """

    @dataclass(frozen=True)
    class Config:
        """Defaults are sized for a CPU."""

        share: Annotated[float, "share of generated rows in a batch", Interval(ge=0, le=1)] = 0.5
        updates: Annotated[int, "optimizer steps of the first refresh", Ge(0)] = 6_000
        refresh_updates: Annotated[int, "optimizer steps of a later, warm-started refresh", Ge(0)] = 2_000
        num_samples: Annotated[int, "rows generated per refresh", Ge(0)] = 20_000
        refresh_interval: Annotated[int, "environment steps between refreshes", Ge(0)] = 4_000
        first_refresh: Annotated[int, "online rows before the first refresh", Ge(0)] = 2_000
        gate: Gate = field(default_factory=Gate)
        from_scratch: Annotated[bool, "reinitialize the weights at each refresh"] = False
        pretrained: Annotated[str | None, "folder of a saved generator to start from; overrides the network sizes"] = (
            None
        )
        batch_size: Annotated[int, "rows per training batch, over all processes", Ge(1)] = 512
        learning_rate: Annotated[float, "initial learning rate of a refresh; cosine decay to 0", Gt(0)] = 2e-3
        ema_decay: Annotated[float, "decay of the weight average used for sampling", Interval(ge=0, lt=1)] = 0.995
        width: Annotated[int, "hidden units", Ge(1)] = 256
        depth: Annotated[int, "residual blocks", Ge(1)] = 4
        embedding_dim: Annotated[int, "width of the noise level and condition embeddings", Ge(1)] = 128
        differences: Annotated[bool, "model s' - s instead of s', so that one small step is learned exactly"] = True
        whitening: Annotated[
            float, "share of a refresh's steps that fit the conditional whitening first; 0: none", Interval(ge=0, lt=1)
        ] = 0.4
        outcome_noise: Annotated[
            float, "scale of whitened outcomes' residuals; 0: the mean outcome, for deterministic dynamics", Ge(0)
        ] = 0.0
        bounds: Annotated[bool, "train with entries at a bound moved outward, so that clamping restores them"] = True
        surfaces: Annotated[bool, "project observations onto surfaces that real ones never leave"] = True
        labels: Annotated[bool, "set sparse rewards and terminations by a rule of real rows, if one is found"] = True
        sampling: Sampling = field(default_factory=Sampling)
        sample_batch_size: Annotated[int, "rows denoised per batch", Ge(1)] = 4_096

    config: Any
    condition: Literal["none", "label", "score"] = "none"
    parts: tuple[str, ...] = ()
    state_fields = ("num_refreshes", "num_dropped")

    def __init__(self, config: Any, spec: TransitionSpec, *, seed: int, device: torch.device | str = "cpu"):
        batch_part(config.batch_size, "generator.batch_size")
        self.config, self.spec, self.seed, self.device = config, spec, seed, torch.device(device)
        self.rng, self.row_rng = ShardedRng(seed, self.device), ShardedRng(seed + 1, "cpu")
        self.model = self._model()
        self.training = DenoiserTraining(self.model.network, learning_rate=config.learning_rate, decay=config.ema_decay)
        self.whitening = DenoiserTraining(
            self.model.layout.whitening, learning_rate=config.learning_rate, decay=config.ema_decay
        )
        self.num_refreshes = self.num_dropped = 0
        self.coordinates: Tensor | None = None  # of the real rows, offline before online; recomputed after a restart
        with seeded(seed):
            self.build()
        for name in self.parts if config.pretrained else ():
            load_part(find_folder(config.pretrained), name, getattr(self, name))

    def build(self) -> None:
        """Create the modules named in `parts`."""

    @abstractmethod
    def training_mix(self, replay: Replay) -> tuple[float, float]:
        """Shares of offline and online rows in a training batch, summing to 1."""

    def share(self, replay: Replay) -> GeneratedShare:
        """`share` of the settings, all with the online label."""
        return GeneratedShare(share=self.config.share)

    def next_refresh(self, replay: Replay) -> Refresh:
        """The next refresh, from the settings; warm starts use `refresh_updates`."""
        c = self.config
        return Refresh(self.num_updates, c.num_samples, c.first_refresh, c.refresh_interval, c.gate)

    def conditions(self, batch: Transitions) -> Tensor | None:
        """[B] training conditions of real rows; None for an unconditional model."""
        return None

    def denoiser(self, size: int, source: Source, replay: Replay, agent: Agent) -> Denoiser:
        """The guided model for `size` new rows of this process."""
        return self.model

    @property
    def num_updates(self) -> int:
        """Optimizer steps of the current or next refresh; subclasses add the steps of their parts."""
        return self.model_updates

    @property
    def model_updates(self) -> int:
        """Steps of the whitening, then of the denoiser, among `num_updates`."""
        return self.config.refresh_updates if self.is_warm else self.config.updates

    @property
    def is_warm(self) -> bool:
        """Whether the current or next refresh keeps the weights."""
        return (self.num_refreshes > 0 or self.config.pretrained is not None) and not self.config.from_scratch

    def begin_refresh(self, replay: Replay, agent: Agent) -> None:
        """Fit the layout to the current rows; reset the optimizers and, if `from_scratch`, the weights."""
        if self.config.from_scratch:
            fresh = self._new_model(self.seed + self.num_refreshes)
            self.model.network.load_state_dict(fresh.network.state_dict())
            self.model.layout.load_state_dict(fresh.layout.state_dict())
        self.model.fit([replay.offline, replay.online], self.training_mix(replay), is_warm=self.is_warm)
        whitening_updates = int(self.config.whitening * self.model_updates)
        self.coordinates = None
        self.whitening.begin(self.model.layout.whitening, whitening_updates)
        self.training.begin(self.model.network, self.model_updates - whitening_updates)

    def update(self, replay: Replay, agent: Agent) -> Metrics:
        """Take one step of the whitening or, once it is fitted, of the denoiser."""
        if self.whitening.num_done < self.whitening.num_steps:
            return self.update_whitening(replay)
        if self.coordinates is None:
            pools = [self.spec.flatten(pool.all()) for pool in (replay.offline, replay.online)]
            self.coordinates = torch.cat([self.model.layout.encode(pool, label) for label, pool in enumerate(pools)])
        loss = self.training.step(self.loss(self.real_rows(replay)), self.model.network)
        if self.training.num_done == self.training.num_steps:
            self.num_refreshes += 1
        return {"loss": loss}

    def update_whitening(self, replay: Replay) -> Metrics:
        """Take one step of the whitening, and standardize its residuals after the last."""
        layout, batch = self.model.layout, self.real_rows(replay)
        rows, network = self.spec.flatten(batch), cast(Whitening, self.whitening.network)
        loss = network.loss(layout.split(rows, batch.sources), layout.targets(rows))
        loss = self.whitening.step(loss, layout.whitening)
        if self.whitening.num_done == self.whitening.num_steps:
            layout.standardize([replay.offline, replay.online], self.training_mix(replay))
        return {"whitening_loss": loss}

    def loss(self, batch: Transitions) -> Tensor:
        """Denoising loss of real rows."""
        assert self.coordinates is not None
        x = self.coordinates[batch.rows + self.model.pool_rows[0] * (batch.sources == Source.ONLINE)]
        conditions = self.conditions(batch)
        condition = () if conditions is None else (conditions,)
        network = precondition(self.training.network, self.model.sigma_data)
        sigma = draw_sigma(self.rng.normal(len(x), 1))
        noise = self.rng.normal(*x.shape)
        return denoising_loss(lambda x, sigma: network(x, sigma, *condition), x, sigma, noise, self.model.sigma_data)

    def real_rows(self, replay: Replay) -> Transitions:
        """This process's part of a training batch, in exact `training_mix` and stratified over each pool's rows."""
        offline, _ = self.training_mix(replay)
        strata = shard(torch.arange(self.config.batch_size, dtype=torch.float64))
        positions = (strata + self.row_rng.uniform(len(strata))) / self.config.batch_size
        pools = (positions >= offline).long()
        within = torch.where(
            pools == 0, positions / max(offline, 1e-12), (positions - offline) / max(1 - offline, 1e-12)
        )
        sizes = torch.tensor([len(replay.offline), len(replay.online)])[pools]
        rows = torch.minimum((within * sizes).long(), sizes - 1)
        return replay.gather(Draw.create(rows, pools))

    @torch.no_grad()
    def sample(self, num_samples: int, *, source: Source, replay: Replay, agent: Agent) -> Transitions:
        """At most `num_samples` transitions labeled `source`; invalid rows are dropped and counted."""
        rows = [torch.empty(0, self.spec.row_dim, device=self.device)]
        for start in range(0, num_samples, self.config.sample_batch_size):
            size = min(self.config.sample_batch_size, num_samples - start)
            part = -(-size // num_processes())  # processes split the work, and each gets all rows
            denoise = self.denoiser(part, source, replay, agent)
            x = self.start(part, replay, source)
            rows.append(gather(solve(denoise, x, self.config.sampling, self.model.levels, self.rng.normal))[:size])
        valid = self.model.layout.decode(torch.cat(rows), int(source.real))
        self.num_dropped += num_samples - len(valid)
        return self.spec.unflatten(valid, source)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state`; coordinates are recomputed from it."""
        super().load_state_dict(state)
        self.coordinates = None

    def start(self, size: int, replay: Replay, source: Source = Source.GENERATED_ONLINE) -> Tensor:
        """[size, row_dim] coordinates to denoise: noise, or real offline rows plus noise (`start_sigma`)."""
        noise, sigma = self.rng.normal(size, self.spec.row_dim), self.config.sampling.start_sigma
        if sigma is None:
            return self.model.levels.sigma_max * noise
        if not len(replay.offline):
            raise InputError(
                "setting 'generator.sampling.start_sigma' needs offline rows to start from; there are none"
            )
        rows = self.row_rng.integers(len(replay.offline), size)
        real = self.model.layout.encode(self.spec.flatten(replay.offline[rows.to(self.device)]), int(source.real))
        return real + sigma * noise

    def augment(self, batch: Transitions, *, replay: Replay, agent: Agent) -> Transitions:
        """Return `batch` unchanged: generated rows are drawn from the pools."""
        return batch

    def save_pretrained(self, folder: str | Path, provenance: Mapping[str, Any] | None = None) -> None:
        """Save everything sampling needs to `folder` in diffusers' format, with a model card, atomically.

        `provenance` describes the training data, for the card.
        """
        target = f"{type(self).__module__}.{type(self).__qualname__}"
        settings = {"target": target, **asdict(replace(self.config, pretrained=None))}
        parts = {name: getattr(self, name) for name in self.parts}
        save_folder(Path(folder), self.model, parts, settings, provenance)

    def push_to_hub(
        self,
        repo_id: str,
        provenance: Mapping[str, Any] | None = None,
        *,
        license: str | None = None,
        private: bool = False,
        token: str | None = None,
    ) -> str:
        """Upload to the hub repository `repo_id` (owner/name), created if missing; returns its URL."""
        known = {**(provenance or {}), **({"license": license} if license else {})}
        return push(lambda folder: self.save_pretrained(folder, known), repo_id, private=private, token=token)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        spec: TransitionSpec | None = None,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Load the generator saved in `folder` or under a hub id.

        Raises InputError if a file is missing or altered, or `spec` has different columns.
        """
        found = find_folder(folder)
        settings: Any = read_settings(found)
        settings.pop("target")
        settings |= {"sampling": Sampling(**settings["sampling"]), "gate": Gate(**settings.get("gate", {}))}
        config: Any = cls.Config(**settings | {"pretrained": str(found)})
        return cls(config, spec or TransitionDenoiser.from_pretrained(found).spec, seed=seed, device=device)

    def _model(self) -> TransitionDenoiser:
        """The pretrained model, or a new one."""
        if not self.config.pretrained:
            return self._new_model(self.seed)
        folder = find_folder(self.config.pretrained)
        return load_model(folder, self.spec, self.condition).to(self.device)  # pyright: ignore[reportArgumentType]

    def _new_model(self, seed: int) -> TransitionDenoiser:
        """A model with weights that depend only on `seed`."""
        sizes = {name: getattr(self.config, name) for name in ("width", "depth", "embedding_dim")}
        sizes |= {name: getattr(self.config, name) for name in ("differences", "bounds", "surfaces", "labels")}
        sizes["outcome_noise"] = self.config.outcome_noise if self.config.whitening else 1.0
        with seeded(seed):
            model = TransitionDenoiser.create(self.spec, condition=self.condition, **sizes)
        return model.to(self.device)  # pyright: ignore[reportArgumentType]


def proportional(replay: Replay) -> tuple[float, float]:
    """Shares of offline and online rows in the union of both pools."""
    total = max(len(replay.offline) + len(replay.online), 1)
    return len(replay.offline) / total, len(replay.online) / total


def ramped(scale: float, online_rows: int, ramp: int) -> float:
    """`scale`, ramped up linearly with the online rows until there are `ramp`; full scale if `ramp` is 0."""
    return scale * min(1.0, online_rows / ramp) if ramp else scale

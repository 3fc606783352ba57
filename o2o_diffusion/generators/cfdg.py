"""Classifier-free diffusion generation, CFDG (ICML 2025), https://arxiv.org/abs/2508.06806.

One diffusion model of transitions, conditioned on where a row comes from: offline or online. Sampling with the online
label, guided away from what both have in common, gives rows aligned with what the policy meets now.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor

from o2o_diffusion.data.replay import Replay
from o2o_diffusion.diffusion.guidance import classifier_free
from o2o_diffusion.diffusion.loss import denoising_loss, draw_sigma
from o2o_diffusion.diffusion.preconditioning import Denoiser, precondition
from o2o_diffusion.diffusion.solvers import dpm_scheduler, karras_sigmas, sample_dpm, sample_heun
from o2o_diffusion.diffusion.training import DenoiserTraining, drop_labels
from o2o_diffusion.distributed import Noise, gather, num_processes
from o2o_diffusion.errors import InputError
from o2o_diffusion.generators.model import TransitionDenoiser, check_manifest, layout, write_manifest
from o2o_diffusion.optimization import Stateful
from o2o_diffusion.protocols import Agent, GeneratedShare
from o2o_diffusion.types import Metrics, Source, Transitions, TransitionSpec

LABELS = {Source.GENERATED_OFFLINE: 0, Source.GENERATED_ONLINE: 1}
SETTINGS = "generator.json"


class CFDG(Stateful):
    """SynthER's transition model with labels and guidance.

    The paper does not state label dropout, guidance scale, whether terminations are modelled, what a refresh starts
    from, or the rows drawn per refresh at small budgets: those defaults are ours.
    """

    @dataclass(frozen=True)
    class Config:
        """Defaults are for a CPU; `cfdg-paper.yaml` holds the paper's sizes."""

        share: Annotated[float, "share of generated rows in a batch"] = 1 / 3
        online_share: Annotated[float, "share of the generated rows that carry the online label"] = 0.8
        updates: Annotated[int, "optimiser steps of the first refresh"] = 5_000
        refresh_updates: Annotated[int, "optimiser steps of a later, warm-started refresh"] = 2_000
        num_samples: Annotated[int, "rows drawn after a refresh"] = 20_000
        refresh_interval: Annotated[int, "environment steps between refreshes"] = 4_000
        first_refresh: Annotated[int, "online rows before the first refresh"] = 2_000
        from_scratch: Annotated[bool, "forget the weights at each refresh"] = False
        pretrained: Annotated[str | None, "folder of a saved generator to start from; its network sizes win"] = None
        batch_size: Annotated[int, "rows of a training batch, half of them of each label"] = 512
        learning_rate: Annotated[float, "at the beginning of a refresh; falls to 0 along a cosine"] = 2e-3
        ema_decay: Annotated[float, "decay of the weights' average, which is what samples"] = 0.995
        label_dropout: Annotated[float, "share of training rows without their label"] = 0.25
        width: Annotated[int, "hidden units"] = 256
        depth: Annotated[int, "residual blocks"] = 4
        embedding_dim: Annotated[int, "width of the noise and label embedding"] = 128
        differences: Annotated[bool, "model s' - s in place of s', so that one small step is learned exactly"] = True
        guidance: Annotated[float, "w of (1 + w) D(x, label) - w D(x, none)"] = 1.0
        guidance_ramp: Annotated[int, "online rows at which guidance reaches its full scale; 0: at once"] = 10_000
        solver: Annotated[Literal["dpm", "heun"], "DPM-Solver++ 2M, or the paper's stochastic Heun"] = "dpm"
        num_steps: Annotated[int, "solver steps"] = 16
        churn: Annotated[float, "Heun's added noise; 0: deterministic"] = 80.0
        sample_batch_size: Annotated[int, "rows denoised at a time"] = 4_096

    counters = ("num_refreshes", "num_dropped")

    def __init__(self, config: Config, spec: TransitionSpec, *, seed: int, device: torch.device | str = "cpu"):
        if config.batch_size % (len(LABELS) * num_processes()):
            raise InputError(
                f"setting 'generator.batch_size': {config.batch_size} can't be divided among labels, processes"
            )
        self.config, self.spec, self.seed, self.device = config, spec, seed, torch.device(device)
        self.generated = GeneratedShare(share=config.share, online=config.online_share)
        self.num_samples = config.num_samples
        self.refresh_interval, self.first_refresh = config.refresh_interval, config.first_refresh
        self.noise, self.row_noise = Noise(seed, self.device), Noise(seed + 1, "cpu")
        self.model = self._load(config.pretrained) if config.pretrained else self._new_model(seed)
        self.training = DenoiserTraining(self.model.network, learning_rate=config.learning_rate, decay=config.ema_decay)
        self.num_refreshes = self.num_dropped = 0

    @property
    def num_updates(self) -> int:
        """Optimiser steps of the present refresh, or of the next one."""
        warm = (self.num_refreshes > 0 or self.config.pretrained is not None) and not self.config.from_scratch
        return self.config.refresh_updates if warm else self.config.updates

    def begin_refresh(self, replay: Replay, agent: Agent) -> None:
        """Fit normaliser and limits to what the replay holds now; warm weights, fresh optimiser."""
        self.model.fit([replay.offline, replay.online])
        if self.config.from_scratch:
            fresh = self._new_model(self.seed + self.num_refreshes)
            self.model.network.load_state_dict(fresh.network.state_dict())
        self.training.begin(self.model.network, self.num_updates)

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Denoising loss of normalised rows x [B, row_dim] with labels [B], some of which are dropped."""
        dropped = self.noise.uniform(len(x))
        labels = drop_labels(labels, dropped, null=self.model.null_label, probability=self.config.label_dropout)
        conditional = precondition(self.training.network, self.model.sigma_data)
        sigma = draw_sigma(self.noise.normal(len(x), 1))
        noise = self.noise.normal(*x.shape)
        return denoising_loss(lambda x, sigma: conditional(x, sigma, labels), x, sigma, noise, self.model.sigma_data)

    def update(self, replay: Replay, agent: Agent) -> Metrics:
        """One optimiser step on rows of both labels."""
        x, labels = self._batch(replay)
        loss = self.training.step(self.loss(x, labels), self.model.network)
        if self.training.num_done == self.training.num_steps:
            self.num_refreshes += 1
        return {"loss": loss}

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        *,
        source: Source = Source.GENERATED_ONLINE,
        replay: Replay | None = None,
        agent: Agent | None = None,
    ) -> Transitions:
        """At most `num_samples` transitions labelled `source`: rows that are not finite are dropped and counted.

        A label that no row carried in the last fit is replaced by the null label, without guidance.
        """
        denoise = self._guided(LABELS[source])
        sizes = [self.config.sample_batch_size] * (num_samples // self.config.sample_batch_size)
        sizes += [num_samples % self.config.sample_batch_size] * (num_samples % self.config.sample_batch_size > 0)
        empty = torch.empty(0, self.spec.row_dim, device=self.device)
        rows = torch.cat([empty, *(self._solve(denoise, size) for size in sizes)])
        rows = self.model.postprocess(rows)
        self.num_dropped += num_samples - len(rows)
        return self.spec.unflatten(rows, source)

    def save_pretrained(self, folder: str | Path) -> None:
        """Save what sampling needs to `folder` in diffusers' format; the checksums are written last."""
        folder = Path(folder)
        self.model.save_pretrained(folder)
        self.scheduler().save_pretrained(folder)
        target = f"{type(self).__module__}.{type(self).__qualname__}"
        settings = {"target": target, **asdict(replace(self.config, pretrained=None))}
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
        write_manifest(folder)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        spec: TransitionSpec | None = None,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> "CFDG":
        """The generator saved in `folder`; raises InputError when a file was altered or `spec` has other columns."""
        check_manifest(Path(folder))
        settings = json.loads((Path(folder) / SETTINGS).read_text())
        settings.pop("target")
        if spec is None:
            saved = json.loads((Path(folder) / "config.json").read_text())
            spec = TransitionSpec(saved["observation_dim"], saved["action_dim"])
        return cls(cls.Config(**settings | {"pretrained": str(folder)}), spec, seed=seed, device=device)

    def scheduler(self):
        """diffusers' scheduler with the constants of the model."""
        model = self.model
        return dpm_scheduler(model.sigma_min, model.sigma_max, model.rho, model.sigma_data)

    def _batch(self, replay: Replay) -> tuple[Tensor, Tensor]:
        """This process's normalised rows and labels: half of each, or all of one while the other pool is empty."""
        pools = [replay.offline, replay.online]
        held = [label for label, pool in enumerate(pools) if len(pool)]
        labels = torch.tensor(held).repeat_interleave(self.config.batch_size // (len(held) * num_processes()))
        sizes = torch.tensor([len(pool) for pool in pools])
        rows = (self.row_noise.uniform(len(labels)).double() * sizes[labels]).long()
        batch = replay.gather(rows.to(self.device), labels.to(self.device))
        return self.model.normalize(self.spec.flatten(batch)), labels.to(self.device)

    def _guided(self, label: int) -> Denoiser:
        """The model as a denoiser of rows with `label`; guidance grows with the online rows of the last fit."""
        config, null = self.config, self.model.null_label
        label_rows = self.model.label_rows.tolist()
        if label_rows[label] == 0:
            return classifier_free(self.model, label=null, null=null, scale=0.0)
        ramp = min(1.0, label_rows[1] / config.guidance_ramp) if config.guidance_ramp else 1.0
        return classifier_free(self.model, label=label, null=null, scale=config.guidance * ramp)

    def _solve(self, denoise: Denoiser, size: int) -> Tensor:
        """[size, row_dim] normalised rows; the processes share the work and all get all of it."""
        config, model = self.config, self.model
        x = model.sigma_max * self.noise.normal(-(-size // num_processes()), self.spec.row_dim)
        if config.solver == "dpm":
            x = sample_dpm(denoise, x, self.scheduler(), config.num_steps)
        else:
            sigmas = karras_sigmas(config.num_steps, model.sigma_min, model.sigma_max, model.rho)
            x = sample_heun(denoise, x, sigmas, churn=config.churn, normal=self.noise.normal)
        return gather(x)[:size]

    def _new_model(self, seed: int) -> TransitionDenoiser:
        """A model whose weights depend on `seed` only."""
        config = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = TransitionDenoiser.create(
                self.spec,
                width=config.width,
                depth=config.depth,
                embedding_dim=config.embedding_dim,
                differences=config.differences,
            )
        return model.to(self.device)  # pyright: ignore[reportArgumentType]

    def _load(self, folder: str) -> TransitionDenoiser:
        """The saved model; raises InputError when it was altered or made for other columns."""
        check_manifest(Path(folder))
        model = TransitionDenoiser.from_pretrained(folder)
        saved, wanted = (_in_words(columns) for columns in (model.config["columns"], layout(self.spec)))
        if saved != wanted:
            raise InputError(f"generator {folder} was made for the columns {saved}; the task has {wanted}")
        return model.to(self.device)  # pyright: ignore[reportArgumentType]


def _in_words(columns: Sequence[tuple[str, int]]) -> str:
    """Columns in one line, as "observations 11, actions 3"."""
    return ", ".join(f"{name} {width}" for name, width in columns)

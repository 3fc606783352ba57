"""A generator that decides by itself whether to generate: if not, the run equals one without a generator."""

from dataclasses import dataclass
from typing import Annotated, Any

import torch

from o2o_diffusion.decision import Circumstances, Decision, decide, reconsider
from o2o_diffusion.generators.none import NoGenerator
from o2o_diffusion.protocols import Agent, Generator
from o2o_diffusion.replay import Replay
from o2o_diffusion.schedule import GeneratedShare, Refresh
from o2o_diffusion.settings import compose
from o2o_diffusion.state import Stateful
from o2o_diffusion.types import Metrics, Source, Transitions, TransitionSpec


@dataclass(frozen=True)
class NoRun:
    """No run settings: only the generator's are composed."""


class Auto(Stateful):
    """Another generator, or none; see `decision.py` for the rules. Until it is told about the run, none."""

    @dataclass(frozen=True)
    class Config:
        """Which generators to use, with settings of theirs; those of the few-data study by default."""

        with_data: Annotated[tuple[str, ...], "generator of runs with offline rows, and its settings"] = ("cfdg",)
        from_nothing: Annotated[tuple[str, ...], "generator of runs without offline rows, and its settings"] = (
            "synther",
        )
        settings: Annotated[tuple[str, ...], "settings of either"] = ()

    config: Config
    state_fields = ("decision",)

    def __init__(self, config: Config, spec: TransitionSpec, *, seed: int, device: torch.device | str = "cpu"):
        self.config, self.spec, self.options = config, spec, {"seed": seed, "device": device}
        self.decision = Decision(0.0, "nothing is known about the run")
        self.generator: Generator = NoGenerator(NoGenerator.Config(), spec, seed=seed, device=device)
        self.known: Circumstances | None = None

    def decide(self, known: Circumstances) -> Decision:
        """Decide before a run, and build the generator if there is to be one."""
        self.known, self.decision = known, decide(known)
        if self.decision.share:
            name, *own = self.config.with_data if known.offline_rows else self.config.from_nothing
            settings = [f"share={self.decision.share}", *self.config.settings, *own]
            overrides = [f"generator={name}", *(f"generator.{setting}" for setting in settings)]
            component: Any = compose(None, NoRun, ("generator",), overrides).components["generator"]
            self.generator = component.build(self.spec, **self.options)
        return self.decision

    def reconsider(self, policy_return: float) -> Decision:
        """Decide again once the pretrained policy is evaluated."""
        if self.known is not None:
            self.decision = reconsider(self.decision, self.known, policy_return)
        return self.decision

    def share(self, replay: Replay) -> GeneratedShare:
        """The generator's share, or 0."""
        return self.generator.share(replay) if self.decision.share else GeneratedShare()

    def next_refresh(self, replay: Replay) -> Refresh:
        """The generator's next refresh, or one that is never due."""
        return self.generator.next_refresh(replay) if self.decision.share else Refresh()

    def begin_refresh(self, replay: Replay, agent: Agent) -> None:
        """Prepare the generator's refresh."""
        self.generator.begin_refresh(replay, agent)

    def update(self, replay: Replay, agent: Agent) -> Metrics:
        """Run one optimizer step of the generator."""
        return self.generator.update(replay, agent)

    def sample(self, num_samples: int, *, source: Source, replay: Replay, agent: Agent) -> Transitions:
        """The generator's transitions."""
        return self.generator.sample(num_samples, source=source, replay=replay, agent=agent)

    def augment(self, batch: Transitions, *, replay: Replay, agent: Agent) -> Transitions:
        """The generator's rows at batch time."""
        return self.generator.augment(batch, replay=replay, agent=agent)

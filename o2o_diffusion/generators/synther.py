"""SynthER: synthetic experience replay (Lu et al., 2023), https://arxiv.org/abs/2303.06614."""

from dataclasses import dataclass
from typing import Annotated, Literal

from o2o_diffusion.generators.base import DiffusionGenerator, proportional
from o2o_diffusion.replay import Replay


class SynthER(DiffusionGenerator):
    """An unconditional model of the replay's rows, without guidance.

    `rows: online` is the paper's online setting and the baseline of the CFDG paper; `rows: all` is the union of both
    pools. Without online rows it trains on the offline ones.
    """

    @dataclass(frozen=True)
    class Config(DiffusionGenerator.Config):
        """Half of a batch is generated, as in the paper's online setting; the sizes are for a CPU."""

        rows: Annotated[Literal["online", "all"], "real rows to train on"] = "online"

    config: Config

    def training_mix(self, replay: Replay) -> tuple[float, float]:
        """Online rows only, or the union."""
        return (0.0, 1.0) if self.config.rows == "online" and len(replay.online) else proportional(replay)

"""SynthER: synthetic experience replay (Lu et al., 2023), https://arxiv.org/abs/2303.06614."""

from dataclasses import dataclass
from typing import Annotated, Literal

from o2o_diffusion.generators.base import DiffusionGenerator, proportional
from o2o_diffusion.replay import Replay


class SynthER(DiffusionGenerator):
    """An unconditional model of the replay's rows: more of the same, without guidance.

    Of the rows it trains on, `online` is what the paper does online, and the baseline of CFDG's paper; `all` is the
    union of both pools. While there are no online rows it trains on the offline ones.
    """

    @dataclass(frozen=True)
    class Config(DiffusionGenerator.Config):
        """Half of a batch is generated, as in the paper's online setting; the sizes are for a CPU."""

        rows: Annotated[Literal["online", "all"], "real rows to train on"] = "online"

    config: Config

    def shares(self, replay: Replay) -> tuple[float, float]:
        """Online rows only, or the union."""
        return (0.0, 1.0) if self.config.rows == "online" and len(replay.online) else proportional(replay)

"""The type checker holds the toy components against the protocols here."""

from collections.abc import Callable

from contracts.noisy_rows import NoisyRows
from contracts.oracle import Oracle
from contracts.policy_rows import PolicyRows
from contracts.seed_view import SeedView
from contracts.vae_learner import VAELearner
from contracts.window_model import WindowModel

from o2o_diffusion.protocols import Generator, Learner

LEARNERS: list[Callable[..., Learner]] = [VAELearner, SeedView]
GENERATORS: list[Callable[..., Generator]] = [NoisyRows, Oracle, PolicyRows, WindowModel]

"""Denoiser training: condition dropout, cosine learning rate, gradient clipping, weight averaging."""

import copy
import math

import torch
from torch import Tensor, nn

from o2o_diffusion.optimization import Optimizer, polyak_update
from o2o_diffusion.state import Stateful


def drop_conditions(conditions: Tensor, uniform: Tensor, *, null: float, probability: float) -> Tensor:
    """`conditions` [B], null where `uniform` [B] < `probability`, so that one network learns both densities."""
    return torch.where(uniform < probability, torch.full_like(conditions, null), conditions)


def cosine_learning_rate(learning_rate: float, step: int, num_steps: int) -> float:
    """The learning rate at `step` of `num_steps`, decaying from `learning_rate` to 0."""
    return learning_rate * (1 + math.cos(math.pi * min(step / num_steps, 1.0))) / 2


def average_decay(decay: float, num_averages: int) -> float:
    """Decay of average update `num_averages` (from 0), lower at first so that the average tracks short runs too."""
    return min(decay, (1 + num_averages) / (10 + num_averages))


class DenoiserTraining(Stateful):
    """Trains a copy of the weights; the running average is used for sampling and saved.

    Settings follow SynthER (arXiv 2303.06614): Adam with betas (0.9, 0.99), gradient norm at most 1.
    """

    state_fields = ("num_done", "num_steps")

    def __init__(self, average: nn.Module, *, learning_rate: float, decay: float = 0.995, average_interval: int = 10):
        self.learning_rate, self.decay, self.average_interval = learning_rate, decay, average_interval
        self.begin(average, num_steps=1)

    def begin(self, average: nn.Module, num_steps: int) -> None:
        """Start `num_steps` steps from the averaged weights, with a new optimizer and the full learning rate."""
        self.num_done, self.num_steps = 0, num_steps
        self.network = copy.deepcopy(average)
        self.optimizer = Optimizer(self.network.parameters(), self.learning_rate, max_grad_norm=1.0, betas=(0.9, 0.99))

    def step(self, loss: Tensor, average: nn.Module) -> Tensor:
        """Take one step of `network` on `loss`, update `average` periodically, and return the detached loss."""
        self.optimizer.learning_rate = cosine_learning_rate(self.learning_rate, self.num_done, self.num_steps)
        loss = self.optimizer.step(loss)
        self.num_done += 1
        if self.num_done % self.average_interval == 0:
            decay = average_decay(self.decay, self.num_done // self.average_interval - 1)
            polyak_update(average, self.network, 1 - decay)
        return loss

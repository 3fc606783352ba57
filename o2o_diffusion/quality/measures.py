"""Everything that is measured, by name: functions of candidate rows and the real rows they are held against.

A candidate is a set of generated rows, or real rows that stand in for the best and the worst a generator could do.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from o2o_diffusion.protocols import Agent
from o2o_diffusion.quality import distances, two_sample
from o2o_diffusion.quality import neighbors as neighbours
from o2o_diffusion.quality.dynamics import Simulator, compare_next
from o2o_diffusion.quality.ensemble import DynamicsEnsemble
from o2o_diffusion.types import Transitions, TransitionSpec

Numbers = dict[str, Any]
"""Floats by name; "marginals" and "dynamics" are lists, by column and by dimension of the observation."""


@dataclass(frozen=True, eq=False)
class Against:
    """What candidates are held against: real rows of their label, and of the other label where there is one."""

    held_out: Transitions
    training: Transitions
    other: Transitions | None
    is_online: bool
    spec: TransitionSpec
    simulator: Simulator | None
    agent: Agent | None
    seed: int

    @cached_property
    def rows(self) -> Tensor:
        """[N, row_dim] of the held-out rows."""
        return self.spec.flatten(self.held_out)

    @cached_property
    def ensemble(self) -> DynamicsEnsemble:
        """Dynamics learned from the held-out rows."""
        return DynamicsEnsemble(self.held_out, seed=self.seed)

    @cached_property
    def label_classifier(self) -> Callable[[Tensor], float] | None:
        """The mean probability of rows to be online."""
        if self.other is None:
            return None
        pools = [self.rows, self.spec.flatten(self.other)]
        online, offline = pools if self.is_online else reversed(pools)
        return two_sample.label_classifier(online, offline, seed=self.seed)


def marginals(candidate: Transitions, against: Against) -> Numbers:
    """1 - KS by column of [s, a, r, s'] (terminations are a rate, below), mean and worst."""
    similarity = distances.marginal_similarity(against.spec.flatten(candidate)[:, :-1], against.rows[:, :-1])
    worst = float(similarity.min())
    return {"marginal": float(similarity.mean()), "marginal_worst": worst, "marginals": similarity.tolist()}


def correlations(candidate: Transitions, against: Against) -> Numbers:
    """1 - mean absolute difference of correlations."""
    return {"correlation": distances.correlation_similarity(against.spec.flatten(candidate), against.rows)}


def transport(candidate: Transitions, against: Against) -> Numbers:
    """Sliced Wasserstein distances."""
    rows, seed = against.spec.flatten(candidate), against.seed
    return {
        f"sliced_wasserstein_{order}": distances.sliced_wasserstein(rows, against.rows, order=order, seed=seed)
        for order in (1, 2)
    }


def moments(candidate: Transitions, against: Against) -> Numbers:
    """Kernel and Frechet distances."""
    rows = against.spec.flatten(candidate)
    return {
        "mmd": distances.mmd(rows, against.rows, seed=against.seed),
        "frechet": distances.frechet(rows, against.rows),
    }


def classifiers(candidate: Transitions, against: Against) -> Numbers:
    """AUC against rows of the own (five folds) and the other label; Jensen-Shannon divergence of rows and parts.

    Two folds, for the parts and the other label, take a fifth of the time and find a little less.
    """
    rows, columns, seed = against.spec.flatten(candidate), against.spec.columns, against.seed
    size = min(len(rows), len(against.rows))
    found = two_sample.scores(rows[:size], against.rows[:size], seed=seed)
    numbers = {"auc": two_sample.area(*found), "js_transitions": two_sample.divergence(*found)}
    for name in ("observations", "actions"):
        parts = [batch[:, columns[name]] for batch in (rows, against.rows)]
        numbers[f"js_{name}"] = two_sample.jensen_shannon(*parts, folds=2, seed=seed)
    if against.other is not None:
        numbers["auc_other"] = two_sample.auc(rows, against.spec.flatten(against.other), folds=2, seed=seed)
    return numbers


def labels(candidate: Transitions, against: Against) -> Numbers:
    """The probability of being online, by a classifier of the real rows of both labels."""
    classify = against.label_classifier
    return {} if classify is None else {"online_probability": classify(against.spec.flatten(candidate))}


def dynamics(candidate: Transitions, against: Against) -> Numbers:
    """Error against the simulator; where there is none, against a learned model, over that of unseen real rows."""
    if against.simulator is None:
        found = [compare_next(candidate, truth, against.held_out) for truth in against.ensemble(candidate)]
        mean, median = (sum(f[name] for f in found) / len(found) for name in ("mean", "median"))
        each = torch.tensor([f["per_dimension"] for f in found]).mean(0).tolist()
        ratio = sum(each) / len(each) / against.ensemble.real_error
        return {"dynamics_ratio": ratio, "dynamics_error": mean, "dynamics_median": median, "dynamics": each}
    known = against.simulator.known(candidate)
    candidate = candidate[known]
    if not len(candidate):
        return {"dynamics_share": 0.0}
    truth = against.simulator(candidate)
    found = compare_next(candidate, truth, against.held_out)
    return {
        "dynamics_error": found["mean"],
        "dynamics_median": found["median"],
        "dynamics_in_variances": found["in_variances"],
        "dynamics": found["per_dimension"],
        "dynamics_share": float(known.float().mean()),
        "reward_error": float((candidate.rewards - truth.rewards).square().mean()),
        "termination_agreement": float((candidate.terminations == truth.terminations).float().mean()),
    }


def support(candidate: Transitions, against: Against) -> Numbers:
    """How much of the real distribution is there, and how much else."""
    density, coverage = neighbours.density_and_coverage(against.spec.flatten(candidate), against.rows)
    return {"density": density, "coverage": coverage}


def novelty(candidate: Transitions, against: Against) -> Numbers:
    """Distance to the nearest training row, over that of held-out rows."""
    rows, training = against.spec.flatten(candidate), against.spec.flatten(against.training)
    return {"novelty": neighbours.novelty(rows, against.rows, training, seed=against.seed)}


def validity(candidate: Transitions, against: Against) -> Numbers:
    """Shares of rows with an action outside [-1, 1] and with an entry outside the training rows' range; endings."""
    rows, training = against.spec.flatten(candidate), against.spec.flatten(against.training)
    outside = (rows < training.amin(0)) | (rows > training.amax(0))
    return {
        "outside_box": float((candidate.actions.abs() > 1).any(1).float().mean()),
        "outside_range": float(outside.any(1).float().mean()),
        "terminations": float(candidate.terminations.mean()),
    }


@torch.no_grad()
def policy(candidate: Transitions, against: Against) -> Numbers:
    """How the actions agree with the policy's: mean log-probability, where it has one, and squared distance."""
    if against.agent is None:
        return {}
    observations, actions = candidate.observations, candidate.actions
    chosen = against.agent.act(observations, deterministic=True)
    numbers = {"action_error": float((chosen - actions).square().sum(1).mean())}
    with contextlib.suppress(TypeError):  # a deterministic actor has none
        numbers["log_prob"] = float(against.agent.log_prob(observations, actions).mean())
    return numbers


Measure = Callable[[Transitions, Against], Numbers]

OF_HELD_OUT: tuple[Measure, ...] = (
    marginals,
    correlations,
    transport,
    moments,
    classifiers,
    labels,
    dynamics,
    support,
    policy,
)
"""Hold candidates against the held-out rows; their floor is a set of training rows."""

OF_TRAINING: tuple[Measure, ...] = (novelty, validity)
"""Hold candidates against the training rows; their floor are the held-out rows."""

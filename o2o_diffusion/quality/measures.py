"""Quality measures: functions of candidate rows and a reference of real rows.

Candidates are generated rows, or real rows for the floor and the ceiling.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from o2o_diffusion.protocols import Agent
from o2o_diffusion.quality import distances, neighbors, two_sample
from o2o_diffusion.quality.endings import Endings
from o2o_diffusion.quality.ensemble import DynamicsEnsemble
from o2o_diffusion.quality.prediction import compare_next
from o2o_diffusion.quality.real import draw, moving
from o2o_diffusion.quality.residuals import Residuals
from o2o_diffusion.types import Transitions, TransitionSpec

if TYPE_CHECKING:
    from o2o_diffusion.quality.dynamics import Simulator  # brings environments

Numbers = dict[str, Any]
"""Floats by name; "marginals" (per column) and "dynamics" (per observation dimension) are lists."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Real rows to compare candidates with: of the same label and, if available, of the other label.

    `limits` [2, row_dim] are the ends of the data's range.
    """

    held_out: Transitions
    training: Transitions
    limits: Tensor
    other: Transitions | None
    is_online: bool
    spec: TransitionSpec
    simulator: "Simulator | None"
    agent: Agent | None
    seed: int

    @cached_property
    def rows(self) -> Tensor:
        """[N, row_dim] held-out rows."""
        return self.spec.flatten(self.held_out)

    @cached_property
    def residuals(self) -> Residuals:
        """Regressions of actions and outcomes, fitted to the training rows."""
        return Residuals(self.training, seed=self.seed)

    @cached_property
    def endings(self) -> Endings:
        """Classifier of endings, fitted to the training rows."""
        return Endings(self.training, seed=self.seed)

    @cached_property
    def ensemble(self) -> DynamicsEnsemble:
        """Dynamics model fitted to the held-out rows."""
        return DynamicsEnsemble(self.held_out, seed=self.seed)

    @cached_property
    def label_classifier(self) -> Callable[[Tensor], float] | None:
        """Function from rows to their mean probability of being online; None without the other label."""
        if self.other is None:
            return None
        pools = [self.rows, self.spec.flatten(self.other)]
        online, offline = pools if self.is_online else reversed(pools)
        return two_sample.label_classifier(online, offline, seed=self.seed)


def marginals(candidate: Transitions, reference: Reference) -> Numbers:
    """1 - KS of each column of [s, a, r, s'], mean and worst; `validity` has the rate of terminations."""
    similarity = distances.marginal_similarity(reference.spec.flatten(candidate)[:, :-1], reference.rows[:, :-1])
    worst = float(similarity.min())
    return {"marginal": float(similarity.mean()), "marginal_worst": worst, "marginals": similarity.tolist()}


def correlations(candidate: Transitions, reference: Reference) -> Numbers:
    """1 - mean absolute difference of column correlations."""
    return {"correlation": distances.correlation_similarity(reference.spec.flatten(candidate), reference.rows)}


def transport(candidate: Transitions, reference: Reference) -> Numbers:
    """Sliced Wasserstein-1 and Wasserstein-2 distances of [s, a, r, s']; `validity` has the rate of terminations."""
    rows, real, seed = reference.spec.flatten(candidate)[:, :-1], reference.rows[:, :-1], reference.seed
    return {
        f"sliced_wasserstein_{order}": distances.sliced_wasserstein(rows, real, order=order, seed=seed)
        for order in (1, 2)
    }


def moments(candidate: Transitions, reference: Reference) -> Numbers:
    """Squared MMD and Frechet distance."""
    rows = reference.spec.flatten(candidate)
    return {
        "mmd": distances.mmd(rows, reference.rows, seed=reference.seed),
        "frechet": distances.frechet(rows, reference.rows),
    }


def trees(candidate: Transitions, reference: Reference) -> Numbers:
    """AUC of boosted trees against the held-out rows.

    Columns that never change within an episode are left out: trees would tell episodes apart by their goals.
    """
    states, others = moving(reference.training), torch.ones(reference.spec.action_dim + 1, dtype=torch.bool)
    seen = torch.cat([states, others, states, others[:1]])
    rows = reference.spec.flatten(candidate)[:, seen]
    return {"auc": two_sample.auc(rows, reference.rows[:, seen], seed=reference.seed)}


def classifiers(candidate: Transitions, reference: Reference) -> Numbers:
    """AUC against the other label, and Jensen-Shannon divergences of transitions, observations and actions."""
    rows = reference.spec.flatten(draw(candidate, len(reference.held_out), reference.seed))
    numbers = {}
    parts = {"transitions": slice(None), **{name: reference.spec.columns[name] for name in ("observations", "actions")}}
    for name, columns in parts.items():
        divergence = two_sample.jensen_shannon(rows[:, columns], reference.rows[:, columns], seed=reference.seed)
        numbers[f"js_{name}"] = divergence
    if reference.other is not None:
        numbers["auc_other"] = two_sample.auc(rows, reference.spec.flatten(reference.other), seed=reference.seed)
    return numbers


def labels(candidate: Transitions, reference: Reference) -> Numbers:
    """Mean probability of being online, from a classifier fitted to real rows of both labels."""
    classify = reference.label_classifier
    return {} if classify is None else {"online_probability": classify(reference.spec.flatten(candidate))}


def dynamics(candidate: Transitions, reference: Reference) -> Numbers:
    """Error against the simulator, or else against a learned model, relative to its error on unseen real rows."""
    if reference.simulator is None:
        found = [compare_next(candidate, truth, reference.held_out) for truth in reference.ensemble(candidate)]
        mean, median = (sum(f[name] for f in found) / len(found) for name in ("mean", "median"))
        each = torch.tensor([f["per_dimension"] for f in found]).mean(0).tolist()
        ratio = sum(each) / len(each) / reference.ensemble.real_error
        return {"dynamics_ratio": ratio, "dynamics_error": mean, "dynamics_median": median, "dynamics": each}
    known = reference.simulator.known(candidate)
    candidate = candidate[known]
    if not len(candidate):
        return {"dynamics_share": 0.0}
    truth = reference.simulator(candidate)
    found = compare_next(candidate, truth, reference.held_out)
    return {
        "dynamics_error": found["mean"],
        "dynamics_median": found["median"],
        "dynamics_in_variances": found["in_variances"],
        "dynamics": found["per_dimension"],
        "dynamics_share": float(known.float().mean()),
        "reward_error": float((candidate.rewards - truth.rewards).square().mean()),
        "termination_agreement": float((candidate.terminations == truth.terminations).float().mean()),
    }


def support(candidate: Transitions, reference: Reference) -> Numbers:
    """Density and coverage of the real distribution, of at most as many rows as are held out."""
    rows = reference.spec.flatten(draw(candidate, len(reference.held_out), reference.seed))
    density, coverage = neighbors.density_and_coverage(rows, reference.rows)
    return {"density": density, "coverage": coverage}


def novelty(candidate: Transitions, reference: Reference) -> Numbers:
    """Median distance to the nearest training row, relative to held-out rows."""
    rows, training = reference.spec.flatten(candidate), reference.spec.flatten(reference.training)
    return {"novelty": neighbors.novelty(rows, reference.rows, training, seed=reference.seed)}


def validity(candidate: Transitions, reference: Reference) -> Numbers:
    """Shares of rows that repeat another, with actions outside [-1, 1], or with entries outside the data's range.

    And the share of entries at the ends of that range, in columns that vary, and the rate of terminations.
    """
    rows, (low, high) = reference.spec.flatten(candidate), reference.limits
    varies = low < high
    varies[-1] = False  # terminations
    at_limits = (rows == low) | (rows == high)
    return {
        "duplicates": 1 - len(rows.unique(dim=0)) / len(rows),
        "outside_box": float((candidate.actions.abs() > 1).any(1).float().mean()),
        "outside_range": float(((rows < low) | (rows > high)).any(1).float().mean()),
        "at_limits": float(at_limits[:, varies].float().mean()),
        "terminations": float(candidate.terminations.mean()),
    }


def residuals(candidate: Transitions, reference: Reference) -> Numbers:
    """Deviations of actions given states, and of outcomes given states and actions, relative to held-out rows."""
    return {name: reference.residuals.ratio(name, candidate, reference.held_out) for name in ("actions", "outcomes")}


def endings(candidate: Transitions, reference: Reference) -> Numbers:
    """Shares of endings that are not marked, and of marked rows that are no endings, where there are enough."""
    return reference.endings(candidate)


@torch.no_grad()
def policy(candidate: Transitions, reference: Reference) -> Numbers:
    """Squared distance of the actions to the policy's, and their mean log-probability if it is stochastic."""
    if reference.agent is None:
        return {}
    observations, actions = candidate.observations, candidate.actions
    chosen = reference.agent.act(observations, deterministic=True)
    numbers = {"action_error": float((chosen - actions).square().sum(1).mean())}
    with contextlib.suppress(TypeError):  # deterministic policies have no density
        numbers["log_prob"] = float(reference.agent.log_prob(observations, actions).mean())
    return numbers


Measure = Callable[[Transitions, Reference], Numbers]

HELD_OUT_METRICS: tuple[Measure, ...] = (
    marginals,
    correlations,
    transport,
    moments,
    trees,
    classifiers,
    labels,
    dynamics,
    support,
    policy,
)
"""Metrics against the held-out rows; the floor is computed on training rows."""

TRAINING_METRICS: tuple[Measure, ...] = (novelty, validity, residuals, endings)
"""Metrics against the training rows; the floor is computed on held-out rows."""

GATE_MEASURES: tuple[Measure, ...] = (validity, endings, residuals, trees)
"""Metrics with limits in a gate; they take a few seconds."""

"""How good generated transitions are, against real rows that the generator never saw.

Every number is to be read beside its floor: the same function of real rows against other real rows.
"""

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from o2o_diffusion.types import Transitions


def standardize(rows: Tensor, real: Tensor) -> Tensor:
    """`rows` [N, D] in units of the `real` rows' standard deviation (at least 1e-3) around their mean."""
    return (rows - real.mean(0)) / real.std(0).clamp(min=1e-3)


def auc(generated: Tensor, real: Tensor, *, folds: int = 5, seed: int = 0) -> float:
    """Two-sample test: AUC of a small classifier that tells the rows apart, on rows it was not trained on.

    0.5 when it cannot, 1 when it always can; never below 0.5 by more than chance. Needs scikit-learn.
    """
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.neural_network import MLPClassifier

    rows = standardize(torch.cat([generated, real]), real).numpy()
    labels = np.repeat([1, 0], [len(generated), len(real)])
    classifier = MLPClassifier((64, 64), early_stopping=True, n_iter_no_change=3, max_iter=20, random_state=seed)
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
    scores = cross_val_predict(classifier, rows, labels, cv=splits, method="predict_proba")
    return float(roc_auc_score(labels, np.asarray(scores)[:, 1]))


def sliced_wasserstein(first: Tensor, second: Tensor, *, num_projections: int = 256, seed: int = 0) -> float:
    """Sliced Wasserstein-2 distance of rows, the root mean square over random directions, in `second`'s std."""
    size = min(len(first), len(second))
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(first.shape[1], num_projections, generator=generator)
    directions /= directions.norm(dim=0)
    quantiles = [
        (standardize(rows, second)[torch.randperm(len(rows), generator=generator)[:size]] @ directions).sort(0).values
        for rows in (first, second)
    ]
    return float((quantiles[0] - quantiles[1]).square().mean().sqrt())


def dynamics_error(
    env: gym.Env, generated: Transitions, real: Transitions, *, limit: float = float("inf")
) -> dict[str, float]:
    """Error of generated next observations against MuJoCo, over the mean squared one-step change of `real` rows.

    The environment is set to each generated observation and steps its action. For tasks whose observation is
    [qpos without the root's x, qvel], as Hopper, HalfCheetah and Walker2d. Hopper and Walker2d clip velocities to
    [-10, 10], from where the state cannot be told: rows with an entry of at least `limit` are left out.
    Returns mean, median and the share of rows compared.
    """
    known = generated.observations.abs().amax(1) < limit
    share, generated = float(known.float().mean()), generated[known]
    errors = [
        np.square(_simulate(env, state, action) - following).sum()
        for state, action, following in zip(
            generated.observations.double().numpy(),
            generated.actions.double().numpy(),
            generated.next_observations.double().numpy(),
            strict=True,
        )
    ]
    change = float((real.next_observations - real.observations).square().sum(1).mean())
    return {"mean": float(np.mean(errors)) / change, "median": float(np.median(errors)) / change, "share": share}


def _simulate(env: gym.Env, observation: np.ndarray, action: np.ndarray) -> np.ndarray:
    """The observation that follows `action` in `observation`."""
    simulator = env.unwrapped
    num_positions = simulator.model.nq  # pyright: ignore[reportAttributeAccessIssue]
    positions = np.concatenate([[0.0], observation[: num_positions - 1]])
    simulator.set_state(positions, observation[num_positions - 1 :])  # pyright: ignore[reportAttributeAccessIssue]
    simulator.do_simulation(action, simulator.frame_skip)  # pyright: ignore[reportAttributeAccessIssue]
    return simulator._get_obs()  # pyright: ignore[reportAttributeAccessIssue]

"""Classifier two-sample tests: how well a small network distinguishes generated from real rows.

Lopez-Paz and Oquab (2017), https://arxiv.org/abs/1610.06545. Rows are [N, D] and [M, D].
"""

import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from o2o_diffusion.quality.distances import standardize


def auc(generated: Tensor, real: Tensor, *, folds: int = 5, seed: int = 0) -> float:
    """Cross-validated AUC of a small classifier of generated against real rows.

    0.5 if it can't distinguish them, 1 if it always can; below 0.5 only by chance.
    """
    return roc_auc(*scores(generated, real, folds=folds, seed=seed))


def jensen_shannon(generated: Tensor, real: Tensor, *, folds: int = 5, seed: int = 0) -> float:
    """Jensen-Shannon divergence in nats, in [0, ln 2]: a lower bound from a classifier's cross-entropy.

    Uses equally many rows of both sets. Only estimates from the same number of rows are comparable: with fewer rows, a
    classifier detects less.
    """
    size = min(len(generated), len(real))
    return divergence(*scores(generated[:size], real[:size], folds=folds, seed=seed))


def scores(generated: Tensor, real: Tensor, *, folds: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cross-validated probability that each row is generated, and the labels (1: generated, 0: real)."""
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    rows = standardize(torch.cat([generated, real]), real).numpy()
    labels = np.repeat([1, 0], [len(generated), len(real)])
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
    with _capped():
        found = cross_val_predict(_classifier(seed), rows, labels, cv=splits, method="predict_proba")
    return np.asarray(found)[:, 1], labels


def roc_auc(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve of `scores`."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, probabilities))


def divergence(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """ln 2 - cross-entropy of the `scores` of equally many rows, in [0, ln 2].

    The scores are calibrated first (Platt scaling), because with early stopping the networks' probabilities are not
    extreme enough.
    """
    from scipy.special import logit
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    evidence = logit(probabilities.astype(np.float64).clip(1e-9, 1 - 1e-9))[:, None]
    calibrated = LogisticRegression(C=1e3).fit(evidence, labels).predict_proba(evidence)
    return float(np.clip(math.log(2) - log_loss(labels, calibrated), 0.0, math.log(2)))


def label_classifier(online: Tensor, offline: Tensor, *, seed: int = 0) -> Callable[[Tensor], float]:
    """Fit a classifier to real rows; returns a function from rows [N, D] to their mean probability of being online."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.model_selection import StratifiedKFold

    pool = torch.cat([online, offline])
    splits = StratifiedKFold(2, shuffle=True, random_state=seed)
    classifier = CalibratedClassifierCV(_classifier(seed), cv=splits)  # Platt scaling, as in `divergence`
    with _capped():
        classifier.fit(standardize(pool, pool).numpy(), np.repeat([1, 0], [len(online), len(offline)]))
    return lambda rows: float(np.asarray(classifier.predict_proba(standardize(rows, pool).numpy()))[:, 1].mean())


def _classifier(seed: int):
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier((64, 64), early_stopping=True, n_iter_no_change=3, max_iter=20, random_state=seed)


def _capped():
    """Suppress the warning that training reached the epoch limit, which is expected."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)

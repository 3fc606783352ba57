"""Classifier two-sample tests: how well boosted trees distinguish generated from real rows.

Lopez-Paz and Oquab (2017), https://arxiv.org/abs/1610.06545. Trees find what small networks miss: single columns whose
values, bounds or ties are wrong. Rows are [N, D] and [M, D].
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def auc(generated: Tensor, real: Tensor, *, folds: int = 2, seed: int = 0) -> float:
    """Cross-validated AUC of a classifier of generated against real rows.

    0.5 if it can't distinguish them, 1 if it always can; below 0.5 only by chance.
    """
    return roc_auc(*scores(generated, real, folds=folds, seed=seed))


def jensen_shannon(generated: Tensor, real: Tensor, *, folds: int = 2, seed: int = 0) -> float:
    """Jensen-Shannon divergence in nats, in [0, ln 2]: a lower bound from a classifier's cross-entropy.

    Uses equally many rows of both sets. Only estimates from the same number of rows are comparable: with fewer rows, a
    classifier detects less.
    """
    size = min(len(generated), len(real))
    return divergence(*scores(generated[:size], real[:size], folds=folds, seed=seed))


def scores(generated: Tensor, real: Tensor, *, folds: int = 2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cross-validated probability that each row is generated, and the labels (1: generated, 0: real)."""
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    rows = torch.cat([generated, real]).numpy()
    labels = np.repeat([1, 0], [len(generated), len(real)])
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
    found = cross_val_predict(_classifier(seed), rows, labels, cv=splits, method="predict_proba")
    return np.asarray(found)[:, 1], labels


def roc_auc(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve of `scores`."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, probabilities))


def divergence(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """ln 2 - cross-entropy of the `scores` of equally many rows, in [0, ln 2].

    The scores are calibrated first (Platt scaling), because trees are too sure of rows they were not fitted to.
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
    classifier.fit(pool.numpy(), np.repeat([1, 0], [len(online), len(offline)]))
    return lambda rows: float(np.asarray(classifier.predict_proba(rows.numpy()))[:, 1].mean())


def _classifier(seed: int):
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(early_stopping=False, random_state=seed)  # pyright: ignore[reportArgumentType]

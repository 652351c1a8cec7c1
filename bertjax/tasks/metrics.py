"""Metrics of the GLUE tasks. Degenerate inputs give 0.0, without NaN or warning.

| metric | 0.0 if |
|---|---|
| `f1` | no positive example and none predicted |
| `f1_macro` | as `f1` for a class, which counts as 0 in the mean |
| `matthews` | all labels or all predictions are one class |
| `pearson`, `spearman` | all targets or all values are equal (one example, too) |
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def accuracy(labels: Sequence[str], predicted: Sequence[str]) -> float:
    """Share of the predictions that are right."""
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predicted))


def f1(labels: Sequence[str], predicted: Sequence[str]) -> float:
    """F1 of the class "1", as in GLUE for MRPC and QQP."""
    from sklearn.metrics import f1_score

    right = np.array([label == "1" for label in labels])
    return float(f1_score(right, np.array([p == "1" for p in predicted]), zero_division=0.0))


def f1_macro(labels: Sequence[str], predicted: Sequence[str]) -> float:
    """Mean of the classes' F1, over all classes that occur in labels or predictions."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, average="macro", zero_division=0.0))


def matthews(labels: Sequence[str], predicted: Sequence[str]) -> float:
    """Matthews' correlation coefficient."""
    from sklearn.metrics import matthews_corrcoef

    if len(set(labels)) < 2 or len(set(predicted)) < 2:
        return 0.0
    return float(matthews_corrcoef(labels, predicted))


def pearson(targets: Sequence[float], values: Sequence[float]) -> float:
    """Pearson's correlation coefficient."""
    from scipy.stats import pearsonr

    return _correlation(pearsonr, targets, values)


def spearman(targets: Sequence[float], values: Sequence[float]) -> float:
    """Spearman's rank correlation coefficient."""
    from scipy.stats import spearmanr

    return _correlation(spearmanr, targets, values)


def _correlation(
    function: Callable[..., Any], targets: Sequence[float], values: Sequence[float]
) -> float:
    if np.ptp(targets) == 0 or np.ptp(values) == 0:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of nearly constant values
        coefficient = float(function(targets, values).statistic)
    return coefficient if np.isfinite(coefficient) else 0.0


METRICS: dict[str, Callable[[Sequence[Any], Sequence[Any]], float]] = {
    function.__name__: function
    for function in (accuracy, f1, f1_macro, matthews, pearson, spearman)
}

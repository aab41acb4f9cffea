"""A classifier that says when it is fitted."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import GridSearchCV, cross_val_score

from tests.integrations.resumed import count

__all__ = ["Counting", "GridSearchCV", "X", "Y", "cross_val_score"]


class Counting(ClassifierMixin, BaseEstimator):
    """Guesses, and says that it was fitted."""

    def __init__(self, depth: int = 1, random_state: int | None = None) -> None:
        self.depth = depth
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Counting:
        count("fit")
        self.classes_ = np.unique(y)
        self.share_ = float(np.random.default_rng(self.random_state).random())
        return self

    def predict(self, X: Any) -> Any:
        return (X[:, 0] * self.depth > self.share_).astype(int)


X = np.random.default_rng(0).random((60, 3))
Y = (X[:, 0] > 0.5).astype(int)

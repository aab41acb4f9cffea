"""What tests use of scikit-learn. It takes a second to import: ``sk = Lazy("tests.estimators")``."""

from __future__ import annotations

from typing import Any

from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_digits, make_classification
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import RFECV, SelectKBest, f_classif
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from sklearn.model_selection import (
    GridSearchCV,
    RandomizedSearchCV,
    cross_val_score,
    cross_validate,
    learning_curve,
)
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, SplineTransformer, StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

__all__ = [
    "PCA",
    "RFECV",
    "SVC",
    "CalibratedClassifierCV",
    "ColumnTransformer",
    "DecisionTreeClassifier",
    "FunctionTransformer",
    "GaussianProcessClassifier",
    "GradientBoostingClassifier",
    "GridSearchCV",
    "HistGradientBoostingClassifier",
    "KMeans",
    "KNeighborsClassifier",
    "LogisticRegression",
    "MLPClassifier",
    "NotFittedError",
    "Pipeline",
    "RandomForestClassifier",
    "RandomizedSearchCV",
    "Ridge",
    "SGDClassifier",
    "Scaler",
    "SelectKBest",
    "SplineTransformer",
    "StandardScaler",
    "TfidfVectorizer",
    "VotingClassifier",
    "cross_val_score",
    "cross_validate",
    "f_classif",
    "learning_curve",
    "load_breast_cancer",
    "load_digits",
    "make_classification",
    "make_pipeline",
]


class Scaler(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A step that counts how often it is fitted."""

    def __init__(self, log: str = "") -> None:
        self.log = log

    def fit(self, X: Any, y: Any = None) -> Scaler:
        with open(self.log, "a") as file:  # noqa: PTH123
            file.write("fit\n")
        self.mean_ = X.mean(axis=0)
        return self

    def transform(self, X: Any) -> Any:
        return X - self.mean_

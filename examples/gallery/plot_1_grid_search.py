"""
A grid search over a pool
=========================

``sky.plugins.sklearn()`` makes ``n_jobs=-1`` mean all slots of the pool. Each fit is a task; X and y reach each node
once.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

import skyward as sky

X, y = load_digits(return_X_y=True)
X, y = X[:500] / 16, y[:500]
grid = {"C": np.logspace(-1, 3, 6), "gamma": np.logspace(-3, 1, 6)}
search = GridSearchCV(SVC(), grid, cv=3, n_jobs=-1)

with sky.Compute(nodes=2, concurrency=2, plugins=[sky.plugins.sklearn()]):
    search.fit(X, y)

print(f"{len(search.cv_results_['params']) * 3} fits; best: {search.best_params_}, {search.best_score_:.3f}")

# %%
# The results are ordinary scikit-learn results, and outlive the pool.

scores = search.cv_results_["mean_test_score"].reshape(6, 6)
figure, axes = plt.subplots(figsize=(6, 4.8), layout="constrained")
image = axes.imshow(scores, cmap="viridis", origin="lower")
for row, column in np.ndindex(scores.shape):
    dark = scores[row, column] < 0.6
    axes.text(column, row, f"{scores[row, column]:.2f}", ha="center", va="center", color="white" if dark else "black")
axes.set_xticks(range(6), [f"{value:.2g}" for value in grid["gamma"]])
axes.set_yticks(range(6), [f"{value:.2g}" for value in grid["C"]])
axes.set_xlabel("gamma")
axes.set_ylabel("C")
axes.set_title("Mean accuracy of three folds")
figure.colorbar(image, ax=axes)
plt.show()

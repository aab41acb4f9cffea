"""
A bootstrap as an executor
==========================

A pool is a ``concurrent.futures`` executor, so ``pool.map`` is all that a bootstrap needs. Each task gets a seed of
its own, and so a stream of random numbers that no other task shares: the result is the same on any number of machines.
"""

import matplotlib.pyplot as plt
import numpy as np

import skyward as sky

generator = np.random.default_rng(7)
x = np.sort(generator.uniform(0, 10, 80))
y = np.sin(x) + 0.15 * x + generator.normal(0, 0.35, x.size)
points = np.linspace(0, 10, 200)


def resampled_fit(seed):
    """Fit a polynomial to points that are drawn with replacement."""
    chosen = np.random.default_rng(seed).integers(0, x.size, x.size)
    return np.polynomial.Polynomial.fit(x[chosen], y[chosen], 7, domain=[0, 10])(points)


seeds = np.random.SeedSequence(1).spawn(400)
with sky.Compute(nodes=2, concurrency=2) as pool:
    curves = np.array(list(pool.map(resampled_fit, seeds, chunksize=20)))

# %%
# At each point, 95 % of the curves lie within the band.

low, middle, high = np.percentile(curves, [2.5, 50, 97.5], axis=0)
figure, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
axes.fill_between(points, low, high, color="tab:blue", alpha=0.25, label="95 % of 400 resampled fits")
axes.plot(points, middle, color="tab:blue", label="median")
axes.scatter(x, y, s=14, color="black", alpha=0.6, label="data")
axes.set_ylim(y.min() - 0.8, y.max() + 0.8)
axes.legend()
plt.show()

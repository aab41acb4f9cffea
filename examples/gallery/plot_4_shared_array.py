"""
Tasks that fill one array
=========================

An array is sent to a node once and mapped by all its slots, read-only. To let tasks of this computer write into one,
open it as a ``numpy.memmap``: each task then fills its part of the file, and nothing has to be sent back.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from joblib import Parallel, delayed

import skyward as sky

generator = np.random.default_rng(3)
stars = generator.normal(size=(2, 300)) * [[1.5], [1.0]]
masses = generator.pareto(2.5, 300) + 0.2
SIDE = 240


def fill(output, rows):
    """Write the potential of all stars into some rows of the map."""
    y, x = np.meshgrid(np.linspace(-3, 3, SIDE)[rows], np.linspace(-4, 4, SIDE), indexing="ij")
    distance = np.hypot(x[..., None] - stars[0], y[..., None] - stars[1])
    output[rows] = (masses / (distance + 0.08)).sum(axis=-1)


with tempfile.TemporaryDirectory() as folder:
    potential = np.memmap(Path(folder, "potential"), dtype=float, mode="w+", shape=(SIDE, SIDE))
    parts = [slice(first, first + 20) for first in range(0, SIDE, 20)]
    with sky.Compute(nodes=2, concurrency=2, plugins=[sky.plugins.joblib()]):
        Parallel(n_jobs=-1)(delayed(fill)(potential, rows) for rows in parts)
    result = np.log(potential)

# %%
# The driver's own memory map shows what the tasks have written.

figure, axes = plt.subplots(figsize=(7, 4.8), layout="constrained")
image = axes.imshow(result, extent=(-4, 4, -3, 3), cmap="inferno", origin="lower")
axes.contour(result, levels=8, extent=(-4, 4, -3, 3), colors="white", linewidths=0.5, alpha=0.6)
axes.set_title("Potential of 300 stars (logarithm), filled by 12 tasks")
figure.colorbar(image, ax=axes)
plt.show()

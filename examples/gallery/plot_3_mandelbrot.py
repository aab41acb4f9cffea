"""
Who drew what
=============

An image is computed in tiles, each a task of ``Parallel``. The second picture shows which slot computed which tile:
slots take the next tile as soon as they are free, so the expensive tiles in the middle do not hold up the others.
"""

import matplotlib.pyplot as plt
import numpy as np
from joblib import Parallel, delayed

import skyward as sky

SIZE, TILE = 480, 40


def tile(row, column):
    """Return how fast each point of a tile escapes, and the slot that computed it."""
    y, x = np.mgrid[row : row + TILE, column : column + TILE] / SIZE
    c = 3 * x - 2.2 + 1j * (3 * y - 1.5)
    z, steps = np.zeros_like(c), np.zeros(c.shape, int)
    for _ in range(60):
        inside = np.abs(z) < 2
        z[inside] = z[inside] ** 2 + c[inside]
        steps += inside
    return steps, sky.current_worker()


places = [(row, column) for row in range(0, SIZE, TILE) for column in range(0, SIZE, TILE)]
with sky.Compute(nodes=2, concurrency=2, plugins=[sky.plugins.joblib()]):
    tiles = Parallel(n_jobs=-1, batch_size=1)(delayed(tile)(*place) for place in places)

# %%
# A slot is identified by the name of its node and a number.

workers = sorted({(worker.node, worker.slot) for _, worker in tiles})
image, drawn_by = np.empty((SIZE, SIZE)), np.empty((SIZE, SIZE))
for (row, column), (steps, worker) in zip(places, tiles, strict=True):
    image[row : row + TILE, column : column + TILE] = steps
    drawn_by[row : row + TILE, column : column + TILE] = workers.index((worker.node, worker.slot))

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.6), layout="constrained")
left.imshow(image, cmap="magma")
left.set_title("What was drawn")
shown = right.imshow(drawn_by, cmap=plt.get_cmap("viridis", len(workers)), vmin=-0.5, vmax=len(workers) - 0.5)
right.set_title("Which slot drew it")
bar = figure.colorbar(shown, ax=right, ticks=range(len(workers)), shrink=0.8)
bar.ax.set_yticklabels([f"{node}, slot {slot}" for node, slot in workers])
for axes in (left, right):
    axes.set_axis_off()
plt.show()

"""
A search that continues where it stopped
========================================

With ``resume=``, the results of finished calls are stored in a file. A program that ended early computes only the rest
when it is run again. Here a random search is interrupted twice by an exception in the driver, as it could be by a
laptop that is closed.
"""

import random
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt

import skyward as sky


def loss(trial):
    """Evaluate one point, slowly."""
    time.sleep(0.02)
    chance = random.Random(trial)
    x, y = chance.uniform(-2, 2), chance.uniform(-1, 3)
    return x, y, (1 - x) ** 2 + 100 * (y - x**2) ** 2


def search(file, stop_after):
    """Return the results with the times at which they arrived; stop after some of them."""
    arrived = []
    with sky.Compute(concurrency=4, resume=file, console=False) as pool:
        begun = time.perf_counter()
        for result in pool.map(loss, range(120)):
            arrived.append((time.perf_counter() - begun, result))
            if len(arrived) == stop_after:
                raise KeyboardInterrupt
    return arrived


with tempfile.TemporaryDirectory() as folder:
    for stop_after in (40, 80, None):
        try:
            arrived = search(Path(folder, "search.run"), stop_after)
        except KeyboardInterrupt:
            print(f"interrupted after {stop_after} results")

# %%
# The last run loads what the first two have computed from the file, immediately, and computes the rest.

times, results = zip(*arrived, strict=True)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
left.plot(times, range(1, len(times) + 1))
left.set_xlabel("seconds since the pool was ready")
left.set_ylabel("results")
left.set_title("80 are loaded, 40 are computed")
x, y, losses = zip(*results, strict=True)
shown = right.scatter(x, y, c=losses, cmap="viridis_r", norm="log", s=22)
right.scatter([1], [1], marker="*", s=140, color="red", label="minimum")
right.legend(loc="lower right")
right.set_title("What was tried")
figure.colorbar(shown, ax=right, label="loss")
plt.show()

"""
A search that goes on where it was
==================================

With ``resume=``, the results of finished calls are kept in a file. A program that ends early computes only the rest
when it is run again. Here a random search is cut off twice, by an exception in the driver, as by a laptop that is
closed.
"""

import random
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt

import skyward as sky


def loss(trial):
    """Evaluate one point, at some expense."""
    time.sleep(0.02)
    chance = random.Random(trial)
    x, y = chance.uniform(-2, 2), chance.uniform(-1, 3)
    return x, y, (1 - x) ** 2 + 100 * (y - x**2) ** 2


def search(file, stop_after):
    """Return the results with the times at which they came; give up after some of them."""
    came = []
    with sky.Compute(concurrency=4, resume=file, console=False) as pool:
        begun = time.perf_counter()
        for result in pool.map(loss, range(120)):
            came.append((time.perf_counter() - begun, result))
            if len(came) == stop_after:
                raise KeyboardInterrupt
    return came


with tempfile.TemporaryDirectory() as folder:
    for stop_after in (40, 80, None):
        try:
            came = search(Path(folder, "search.run"), stop_after)
        except KeyboardInterrupt:
            print(f"cut off after {stop_after} results")

# %%
# The last attempt takes what the first two had computed from the file at once, and computes the rest.

times, results = zip(*came, strict=True)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
left.plot(times, range(1, len(times) + 1))
left.set_xlabel("seconds since the pool was ready")
left.set_ylabel("results")
left.set_title("80 are there, 40 are computed")
x, y, losses = zip(*results, strict=True)
shown = right.scatter(x, y, c=losses, cmap="viridis_r", norm="log", s=22)
right.scatter([1], [1], marker="*", s=140, color="red", label="minimum")
right.legend(loc="lower right")
right.set_title("What was tried")
figure.colorbar(shown, ax=right, label="loss")
plt.show()

"""
When each task ran
==================

A pool reports what happens in it as events. ``TaskEnded`` says which slot ran a task, when it started, and how long it
took: enough for a picture of the whole run. The live page (``dashboard=True``) draws the same picture live.
"""

import random
import time

import matplotlib.pyplot as plt

import skyward as sky
from skyward.core.events import TaskEnded


def prepare(number):
    """Sleep for a short time."""
    time.sleep(random.Random(number).uniform(0.02, 0.06))


def train(number):
    """Sleep for a longer time, and for one number very long."""
    time.sleep(0.9 if number == 20 else random.Random(number).uniform(0.05, 0.25))


ended = []
pool = sky.Compute(nodes=2, concurrency=3, console=False)
pool.events.subscribe(ended.append, [TaskEnded])
with pool:
    futures = [pool.submit(prepare, number) for number in range(40)]
    futures += [pool.submit(train, number) for number in range(30)]
    for future in futures:
        future.result()

# %%
# One task takes much longer than the others and started late: five slots wait for the sixth. Had it been submitted
# first, the run would have been shorter.

start = min(event.started for event in ended)
rows = sorted({(event.node, event.slot) for event in ended})
colours = {"prepare": "tab:blue", "train": "tab:orange"}
figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
for event in ended:
    row = rows.index((event.node, event.slot))
    axes.barh(row, event.seconds, left=event.started - start, color=colours[event.label], edgecolor="white", height=0.8)
axes.set_yticks(range(len(rows)), [f"{node}, slot {slot + 1}" for node, slot in rows])
axes.invert_yaxis()
axes.set_xlabel("seconds")
axes.legend(handles=[plt.Rectangle((0, 0), 1, 1, color=colour, label=name) for name, colour in colours.items()])
plt.show()

"""Loss curves of a training as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

LABELS = {
    "loss": "training",
    "from_rows": "of it from the rows",
    "from_teacher": "of it from the teacher",
    "eval_loss": "development rows",
}


def draw(log: list[dict[str, Any]], path: Path, title: str) -> None:
    """`log` is Trainer's: a dict an event, with `step`."""
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, label in LABELS.items():
        points = [(entry["step"], entry[name]) for entry in log if name in entry]
        if points:
            axes.plot(*zip(*points), label=label, marker="o" if name == "eval_loss" else "", markersize=3)
    axes.set(xlabel="step", ylabel="nats per answer token", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)

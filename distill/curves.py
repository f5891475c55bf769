"""Loss curves of trainings as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

Log = list[dict[str, Any]]  # Trainer's: a dict an event, with `step`

LABELS = {
    "loss": "training",
    "from_rows": "of it from the rows",
    "from_teacher": "of it from the teacher",
    "eval_loss": "development rows",
}


def draw(log: Log, path: Path, title: str) -> None:
    """All losses of one training."""
    _plot({label: (log, name) for name, label in LABELS.items()}, path, title)


def compare(logs: Mapping[str, Log], path: Path) -> None:
    """The loss on the development rows that are watched, of several models."""
    _plot({name: (log, "eval_loss") for name, log in logs.items()}, path, "development rows")


def _plot(lines: Mapping[str, tuple[Log, str]], path: Path, title: str) -> None:
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for label, (log, name) in lines.items():
        points = [(entry["step"], entry[name]) for entry in log if name in entry]
        if points:
            axes.plot(*zip(*points), label=label, marker="o" if name == "eval_loss" else "", markersize=3)
    axes.set(xlabel="step", ylabel="nats per answer token", title=title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=120)

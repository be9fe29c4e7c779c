"""Curves of a run as PNG files, from its log history. Knows numbers and files, no trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from llamafactory.logs import get_logger
from llamafactory.parts import require

logger = get_logger(__name__)

DPI = 100
RAW_COLOR, SMOOTH_COLOR, GRID_COLOR = "#a9c4de", "#1f4e79", "#e3e6ea"


def plot_history(history: Sequence[Mapping[str, float]], folder: Path, keys: Sequence[str]) -> list[Path]:
    """Draw `training_<key>.png` for every key that was logged at two steps or more; returns the files.

    Each shows the raw values and their smoothed line. Raises MissingPackageError without matplotlib.
    """
    require("matplotlib", "plot_loss: true", extra="plot")
    written = []
    for key in keys:
        points = [(entry["step"], entry[key]) for entry in history if key in entry and math.isfinite(entry[key])]
        if len(points) < 2:
            logger.info("No plot of %s: it was logged %d times", key, len(points))
            continue
        path = folder / f"training_{key.replace('/', '_')}.png"
        _draw(points, key, path)
        written.append(path)
    return written


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving average; the longer the series, the smoother: weight 1.8*(sigmoid(n/20) - 1/2), below 0.9."""
    weight = 1.8 * (1 / (1 + math.exp(-0.05 * len(values))) - 0.5)
    smoothed: list[float] = []
    for value in values:
        smoothed.append(weight * smoothed[-1] + (1 - weight) * value if smoothed else value)
    return smoothed


def _draw(points: Sequence[tuple[float, float]], key: str, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    steps, values = [step for step, _ in points], [value for _, value in points]
    figure = Figure(figsize=(6.4, 4.8), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    marker = "o" if len(points) <= 30 else None
    axes.plot(steps, values, color=RAW_COLOR, linewidth=1.2, marker=marker, markersize=3, label="logged")
    axes.plot(steps, smooth(values), color=SMOOTH_COLOR, linewidth=2, label="smoothed")
    axes.set(xlabel="step", ylabel=key, title=key)
    axes.grid(color=GRID_COLOR)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    figure.savefig(path)

"""What a run says of itself: progress lines, the peak memory of all its processes, the closing tables."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table


class PeakMemory:
    """Peak over time of the summed RSS (GB) of this process and everything that descends from it, sampled each second.

    Shared pages are counted once per process that maps them, so the figure is an upper bound.
    """

    def __init__(self, seconds: float = 1.0):
        self.peak_gb = 0.0
        self.at_peak: dict[str, float] = {}  # GB by name of process
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def _sample(self) -> None:
        me = psutil.Process()
        while True:
            parts: Counter[str] = Counter()
            with contextlib.suppress(psutil.Error):
                for process in [me, *me.children(recursive=True)]:
                    with contextlib.suppress(psutil.Error):
                        parts[" ".join(process.cmdline()[:1])[-40:] or process.name()] += process.memory_info().rss
            if parts.total() / 1e9 > self.peak_gb:
                self.peak_gb = parts.total() / 1e9
                self.at_peak = {name: round(size / 1e9, 2) for name, size in parts.most_common(12)}
            if self._stop.wait(self._seconds):
                return


class Progress:
    """One line per step: a spinner while it runs on a terminal, then its name, time and figures."""

    def __init__(self, console: Console):
        self.console = console
        self.steps: dict[str, dict[str, Any]] = {}

    def running(self, name: str, what: str) -> contextlib.AbstractContextManager[Any]:
        if self.console.is_terminal:
            return self.console.status(f"{name}: {what}")
        return contextlib.nullcontext()

    def done(self, name: str, seconds: float, skipped: bool, figures: Mapping[str, Any]) -> None:
        self.steps[name] = {"seconds": round(seconds, 2), "skipped": skipped}
        shown = " · ".join(f"{key} {_short(value)}" for key, value in figures.items() if isinstance(value, int | float | str))
        mark = "kept" if skipped else f"{seconds:.1f} s"
        self.console.print(f" {name:<13} {mark:>8}  {shown}", highlight=False, markup=False, soft_wrap=True)


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def metrics_table(metrics: Mapping[str, Mapping[str, float]], keys: Sequence[str] = ("recall@10", "ndcg@10", "recall@50", "coverage@10")) -> Table:
    """One row per model, one column per metric; a metric that a model does not have stays empty."""
    used = [key for key in keys if any(key in row for row in metrics.values())]
    table = Table()
    table.add_column("model")
    for key in used:
        table.add_column(key, justify="right")
    for name, row in metrics.items():
        table.add_row(name, *[f"{row[key]:.4f}" if key in row else "" for key in used])
    return table


def curves_table(report: Mapping[str, Any]) -> Table:
    """One row per point of a curves.json: the generative head's figures, then those of the fused one."""
    keys = ("recall@10", "ndcg@10", "diversity@10", "coverage@10")
    table = Table()
    for title in ("decoding", "strength"):
        table.add_column(title)
    for title in (*keys, *(f"fused {key}" for key in keys)):
        table.add_column(title, justify="right")
    for name, points in report["curves"].items():
        for point, fused in zip(points, report["fused"][name], strict=True):
            table.add_row(name, point["label"], *[f"{row[key]:.4f}" for row in (point, fused) for key in keys])
    return table

"""What a run says of itself: progress lines, peak memory and CPU time of all its processes, the closing tables."""

from __future__ import annotations

import contextlib
import platform
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table


class Usage:
    """Peak memory and CPU time of this process and everything that descends from it, sampled each second.

    `peak_gb` is the peak over time of the summed RSS; shared pages are counted once per process that maps them, so it is an upper bound.
    `cpu_seconds` (user and system) misses what a process used after its last sample.
    """

    def __init__(self, seconds: float = 1.0):
        self.peak_gb = 0.0
        self.at_peak: dict[str, float] = {}  # GB by name of process
        self._cpu: dict[tuple[int, float], tuple[float, float]] = {}  # (pid, start) -> CPU seconds at the first sample and at the last
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="usage", daemon=True)

    def __enter__(self) -> Usage:
        self._sample(first=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)
        self._sample()

    @property
    def cpu_seconds(self) -> float:
        """Since the beginning; a process that was born later counts from its birth."""
        return sum(last - first for first, last in list(self._cpu.values()))

    def _watch(self) -> None:
        while not self._stop.wait(self._seconds):
            self._sample()

    def _sample(self, first: bool = False) -> None:
        parts: Counter[str] = Counter()
        me = psutil.Process()
        with contextlib.suppress(psutil.Error):
            for process in [me, *me.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    parts[" ".join(process.cmdline()[:1])[-40:] or process.name()] += process.memory_info().rss
                    times = process.cpu_times()
                    used = times.user + times.system
                    known = self._cpu.setdefault((process.pid, process.create_time()), (used if first else 0.0, used))
                    self._cpu[process.pid, process.create_time()] = (known[0], used)
        if parts.total() / 1e9 > self.peak_gb:
            self.peak_gb = parts.total() / 1e9
            self.at_peak = {name: round(size / 1e9, 2) for name, size in parts.most_common(12)}


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


def host() -> dict[str, Any]:
    """The machine a figure was measured on."""
    cpu = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor())
    return {
        "cpu": cpu,
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "python": platform.python_version(),
        "system": platform.system(),
    }


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def health_lines(health: Mapping[str, Any]) -> list[str]:
    """The health report of semantic IDs, for a person."""
    levels = [
        f"L{n} {health[f'l{n}']:,} (perplexity {health[f'l{n}_perplexity']:,.0f}, {health[f'l{n}_used']:,} used, {health[f'l{n}_dead']:,} dead)"
        for n in (1, 2, 3)
    ]
    groups = f"{health['groups_used']:,} of {health['groups']:,} used · {health['group_mean']} items in the mean, {health['group_max']} at most"
    overflow = f"overflow {health['overflow']:.1%} (L1 {health['overflow_l1']:.1%}, L2 {health['overflow_l2']:.1%})"
    return [
        f"items         {health['items']:,} x {health['width']} ({health['method']}) · variance explained by L1 {health['explained_l1']:.0%}, "
        f"L1 and L2 {health['explained_l2']:.0%}",
        f"codes         {' · '.join(levels)}",
        f"groups        {groups} · {health['groups_full']:,} full",
        f"collisions    {health['collisions']} · {overflow}",
    ]

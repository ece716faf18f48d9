"""What a group of processes uses: peak memory and CPU-seconds of a process and all that it started, watched from a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil

INTERVAL = 1.0  # seconds


@dataclass
class Usage:
    """`peak_gb`: of all private memory and, once, the largest shared one (Ray's object store, libraries): what the processes take of the machine."""

    peak_gb: float = 0.0
    cpu: dict[tuple[int, float], float] = field(default_factory=dict)  # seconds by (pid, start) since the watch began, Ray's own daemons apart

    @property
    def cpu_seconds(self) -> float:
        return sum(self.cpu.values())


@contextmanager
def watched(root: psutil.Process | None = None) -> Iterator[Usage]:
    """Usage of a process (this one) and its descendants for the length of the block; only Ray's workers count for CPU-seconds."""
    root, usage, done = root or psutil.Process(), Usage(), threading.Event()
    begin = dict(_workers(root))

    def look() -> None:
        private, shared = 0, [0]
        for process in _family(root):
            try:
                memory = process.memory_info()
            except psutil.Error:
                continue
            private += memory.rss - memory.shared
            shared.append(memory.shared)
        usage.peak_gb = max(usage.peak_gb, (private + max(shared)) / 1e9)
        for key, seconds in _workers(root):
            usage.cpu[key] = max(usage.cpu.get(key, 0.0), seconds - begin.get(key, 0.0))

    def watch() -> None:
        while not done.wait(INTERVAL):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield usage
    finally:
        done.set()
        thread.join()
        look()


def _workers(root: psutil.Process) -> Iterator[tuple[tuple[int, float], float]]:
    for process in _family(root):
        try:
            name = process.cmdline()[:1]
            if name and name[0].startswith("ray::"):
                times = process.cpu_times()
                yield (process.pid, process.create_time()), times.user + times.system
        except psutil.Error:
            continue


def _family(root: psutil.Process) -> list[psutil.Process]:
    """A process and its descendants; none if it has ended."""
    try:
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []

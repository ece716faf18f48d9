"""`ugt bench etl`: IMDb's files at a share of their real size through the pipeline, beside one process of polars, and on one and two nodes of one CPU.

Choices: files come from `ugt.synthetic` and are kept; the pipeline is what `ugt data etl --source imdb` and `ugt data features` run, without the generated
events. Workers are started on a small catalogue first, so start-up is apart and stated. Pipeline and polars take turns; ratios are of medians. Polars and each
cluster run in a process of their own. A node of one CPU is one core: its processes are pinned.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import psutil

from data import etl, features
from data.quality import Tally
from ray_app.bench import etl_polars
from ray_app.bench.processes import watched
from ugt.artifacts import CREDITS, ITEMS, PEOPLE, read_table
from ugt.features import FeatureConfig, load_features
from ugt.schema import UGTError
from ugt.settings import EtlConfig, RayConfig
from ugt.synthetic import write_imdb_at_scale

WARM_UP = 0.01
NODES = (1, 2)


def run(scale: float, seed: int, folder: Path, *, repeats: int, polars: bool, nodes: bool) -> dict[str, Any]:
    """The report of `ugt bench etl`; files and outputs lie in `folder`. Raises UGTError if the two outputs differ or polars fails at a scale of .1 or less."""
    source, small = folder / f"imdb-{scale:g}-{seed}", folder / f"imdb-{WARM_UP:g}-{seed}"
    for size, place in ((WARM_UP, small), (scale, source)):
        write_imdb_at_scale(size, seed, place)
    report: dict[str, Any] = {"scale": scale, "seed": seed}
    runs: list[dict[str, Any]] = []
    references: list[dict[str, Any]] = []
    for i in range(repeats):
        runs.append(_apart("pipeline", source, folder / "out", small))
        if polars and (i == 0 or references):
            found = _polars(source, folder / "polars")
            if found is None and scale <= 0.1:
                raise UGTError("polars did not complete: see above. Free some memory, or leave it out with --no-polars.")
            references += [found] if found is not None else []
    best = sorted(runs, key=lambda r: r["seconds"])[len(runs) // 2]
    report |= best | {"seconds_of_each": [r["seconds"] for r in runs]}
    report["polars_seconds"] = report["ratio_to_polars"] = None
    if references:
        report["polars_seconds"] = round(statistics.median(r["seconds"] for r in references), 2)
        report["ratio_to_polars"] = round(report["polars_seconds"] / report["seconds"], 3)
        middle = sorted(references, key=lambda r: r["seconds"])[len(references) // 2]
        report["polars"] = {"steps": middle["steps"], "peak_rss_gb": middle["peak_rss_gb"], "seconds_of_each": [r["seconds"] for r in references]}
        report["same_output"] = same(folder / "out", folder / "polars")
        if not report["same_output"]:
            raise UGTError(f"the pipeline and polars give different tables: compare {folder / 'out'} with {folder / 'polars'}.")
    if nodes:
        report["nodes"] = _nodes(source, folder / "nodes", small)
    return report | {"host": {"cpus": os.cpu_count(), "memory_gb": round(psutil.virtual_memory().total / 1e9, 1)}}


def pipeline(source: Path, out_dir: Path) -> dict[str, Any]:
    """ETL and features of IMDb's files on the cluster that is connected: rows, seconds and CPU-seconds of each step."""
    shutil.rmtree(out_dir, ignore_errors=True)
    (out_dir / "features").mkdir(parents=True)
    tally, bad, steps = Tally(), [], {}  # type: tuple[Tally, list[pl.DataFrame], dict[str, float]]
    start = time.perf_counter()
    found = etl.catalogue(etl.plan("imdb", source, None), EtlConfig(), out_dir, tally, bad)
    steps["etl"] = round(time.perf_counter() - start, 2)
    features.run(out_dir, FeatureConfig(), out_dir / "features")
    steps["features"] = round(time.perf_counter() - start - steps["etl"], 2)
    tables = tally.figures()
    totals = {name: sum(t[name] for t in tables.values()) for name in next(iter(tables.values()))}
    return totals | {"tables": tables, "seconds": round(time.perf_counter() - start, 2), "steps": steps, "items": found["items"], "credits": found["credits"]}


def same(ours: Path, theirs: Path) -> bool:
    """Whether the pipeline's tables and features are those of polars, value by value."""
    for name, schema, key in (
        ("items", ITEMS, ["item_index"]),
        ("credits", CREDITS, ["item_index", "role", "ordering", "person_id"]),
        ("people", PEOPLE, ["person_id"]),
    ):
        a = pl.DataFrame(pl.from_arrow(read_table(ours / name, schema))).sort(key)
        b = pl.read_parquet(theirs / f"{name}.parquet").sort(key)
        if not a.select(b.columns).equals(b.cast({c: t for c, t in a.schema.items() if c in b.columns})):  # type: ignore[arg-type]
            return False
    x, y = load_features(ours / "features"), load_features(theirs)
    return x.shape == y.shape and (x != y).nnz == 0


def _polars(source: Path, out_dir: Path) -> dict[str, Any] | None:
    """The figures of the reference, or None if it did not complete (too little memory, say)."""
    command = [sys.executable, "-m", etl_polars.__name__, str(source), str(out_dir)]
    limit = int(psutil.virtual_memory().available * 0.9)  # it fails by itself, before the machine does
    process = psutil.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
    with watched(process) as usage:
        output, _ = process.communicate()
    return None if process.returncode else json.loads(output.splitlines()[-1]) | {"peak_rss_gb": round(usage.peak_gb, 2)}


def _nodes(source: Path, out_dir: Path, small: Path) -> dict[str, Any]:
    """One node of one CPU against two: seconds, the tasks' CPU-seconds, and how both change."""
    runs = {count: _apart(str(count), source, out_dir, small) for count in NODES}
    one, two = runs[1], runs[2]
    return {
        "seconds": {str(n): r["seconds"] for n, r in runs.items()},
        "cpu_seconds": {str(n): r["cpu_seconds"] for n, r in runs.items()},
        "speedup": round(one["seconds"] / two["seconds"], 3),
        "cpu_growth": round(two["cpu_seconds"] / one["cpu_seconds"] - 1, 3),
    }


def _apart(cluster: str, source: Path, out_dir: Path, small: Path) -> dict[str, Any]:
    """`pipeline` in a process of its own, with a cluster of its own: `pipeline` (all cores) or a number of nodes. Raises UGTError if it fails."""
    command = [sys.executable, "-m", "ray_app.bench.etl", cluster, str(source), str(out_dir), str(small)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UGTError(f"the pipeline on {source} failed: the reason is above. Its output so far lies in {out_dir}.")
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def main(cluster: str, source: Path, out_dir: Path, small: Path) -> dict[str, Any]:
    """Connect, warm up, run, watch."""
    start = time.perf_counter()
    with watched() as usage, _all_cores() if cluster == "pipeline" else _of_nodes(int(cluster)):
        pipeline(small, out_dir)
        startup = time.perf_counter() - start
        with watched() as work:
            report = pipeline(source, out_dir)
    return report | {"startup_seconds": round(startup, 2), "cpu_seconds": round(work.cpu_seconds, 2), "peak_rss_gb": round(usage.peak_gb, 2)}


def _all_cores() -> Any:
    from ray_app.cluster import connected

    cores = os.cpu_count() or 1
    room = psutil.virtual_memory().available >> 20
    return connected(RayConfig(num_cpus=cores, object_store_mb=min(6_000, room // 3)))


class _of_nodes:
    """A cluster of nodes of one CPU each, every node's processes on one core; the driver shares the first, the head's."""

    def __init__(self, count: int):
        self.count, self.cores = count, psutil.Process().cpu_affinity() or [0]

    def __enter__(self) -> None:
        import ray
        from ray.cluster_utils import Cluster

        if len(self.cores) < self.count:
            raise UGTError(f"{self.count} nodes of one CPU need {self.count} cores; there is {len(self.cores)}. Leave them out with --no-nodes.")
        me = psutil.Process()
        me.cpu_affinity([self.cores[0]])
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 2_000 << 20})
        for core in self.cores[1 : self.count]:
            me.cpu_affinity([core])
            self.cluster.add_node(num_cpus=1, object_store_memory=2_000 << 20)
        me.cpu_affinity([self.cores[0]])
        ray.init(address=self.cluster.address, log_to_driver=False)

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()
        self.cluster.shutdown()


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], *(Path(p) for p in sys.argv[2:5]))))

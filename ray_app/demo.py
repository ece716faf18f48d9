"""`ugt demo`: the main job end to end, from a source to served recommendations, and the table a person reads at the end."""

from __future__ import annotations

import contextlib
import json
import random
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from ray_app import pipeline, serving
from ray_app.bench import serve as bench
from ray_app.cluster import connected
from ray_app.report import Progress, Usage, host, metrics_table
from serve import app
from ugt.artifacts import Artifact, read_table
from ugt.client import Client
from ugt.settings import Settings

REQUESTS = 500


def run(settings: Settings, console: Console) -> dict[str, Any]:
    """Run everything; returns the report that `--json` writes (docs/evaluation.md explains the metrics)."""

    start = time.monotonic()
    app.check_port(settings.serve.host, settings.serve.port)  # now, not after minutes of training
    progress = Progress(console)
    with Usage() as usage, connected(settings.ray) as dashboard:
        _introduce(settings, console, dashboard)
        artifacts = pipeline.run(settings, progress)
        begun = time.monotonic()
        version, known = serving.publish(settings, artifacts)
        progress.done("registry", time.monotonic() - begun, known, {"version": version})

        begun = time.monotonic()
        etl_dir, histories_dir = artifacts["etl"].path, artifacts["histories"].path
        with contextlib.ExitStack() as stack:
            with progress.running("serve", "stores and serving graph"):
                found = serving.find(settings, version)
                base_url = stack.enter_context(serving.served(settings, found))
                before = serving.shown_before(settings, found)
            progress.done("serve", time.monotonic() - begun, False, {"url": base_url})
            begun = time.monotonic()
            with progress.running("requests", f"{REQUESTS} real requests, then feedback"):
                answered = bench.exercise(base_url, etl_dir, histories_dir, requests=REQUESTS, seed=settings.seed, before=before)
            progress.done("requests", time.monotonic() - begun, False, {k: answered[k] for k in ("requests", "illegal_items", "p50_ms", "p99_ms")})
            examples = examples_of(base_url, artifacts, settings.seed)
    evaluation = json.loads((artifacts["evaluate"].path / "metrics.json").read_text())
    report = {
        "total_seconds": round(time.monotonic() - start, 1),
        "peak_rss_gb": round(usage.peak_gb, 2),
        "processes_at_peak_gb": usage.at_peak,
        "source": settings.source,
        "seed": settings.seed,
        "steps": progress.steps,
        "data": {name: artifacts[name].manifest.figures for name in ("source", "etl", "histories") if name in artifacts},
        "protocol": evaluation["protocol"],
        "metrics": evaluation["metrics"],
        "heads": evaluation["heads"],
        "baselines": evaluation["baselines"],
        "intervals": evaluation["intervals"],
        "permuted": evaluation["permuted"],
        "export": artifacts["export"].manifest.figures,
        "serving": {k: v for k, v in answered.items() if k != "feedback_visible"},
        "feedback_visible": answered["feedback_visible"],
        "model_version": version,
        "host": host(),
    }
    _conclude(settings, console, report, examples)
    return report


def _introduce(settings: Settings, console: Console, dashboard: str) -> None:
    console.print("[bold]UGT: one path, end to end[/bold]")
    if settings.source == "sample":
        console.print(" The catalogue, users and events of this run are GENERATED (source: sample), in IMDb's and MovieLens' file formats.", highlight=False)
    elif settings.source == "imdb":
        console.print(" The catalogue is real (IMDb); its users and events are GENERATED, because IMDb publishes none.", highlight=False)
    else:
        console.print(f" Source: {settings.source}, from {settings.data_dir}", highlight=False, soft_wrap=True)
    if dashboard:
        console.print(f" Ray dashboard while it runs: {dashboard}", highlight=False)


def _conclude(settings: Settings, console: Console, report: dict[str, Any], examples: list[dict[str, Any]]) -> None:
    console.print()
    console.print(" Held-out last event of each user, whole catalogue ranked, seen items filtered:", highlight=False)
    console.print(metrics_table(report["metrics"]))
    low, high = report["intervals"]["ugt_minus_popularity_recall@10"]
    console.print(f" UGT minus popularity, recall@10: 95% interval {low:+.4f} to {high:+.4f} (paired bootstrap over users)", highlight=False)
    if "oracle" in report["metrics"]:
        share = report["metrics"]["ugt"]["recall@10"] / max(report["metrics"]["oracle"]["recall@10"], 1e-9)
        console.print(f" The oracle knows each generated user's true taste: it is the ceiling. UGT reaches {share:.0%} of it.", highlight=False)
    answered = report["serving"]
    console.print(
        f" Served {answered['requests']} requests: p50 {answered['p50_ms']:.1f} ms, p99 {answered['p99_ms']:.1f} ms, "
        f"illegal items {answered['illegal_items']}, feedback visible in the next answer: {'yes' if report['feedback_visible'] else 'NO'}",
        highlight=False,
        soft_wrap=True,
    )
    for example in examples:
        table = Table(title=f"User {example['user_id']}", title_justify="left", title_style="bold")
        table.add_column("last watched (newest first)")
        table.add_column("recommended")
        table.add_column("source")
        rows = max(len(example["history"]), len(example["items"]))
        for i in range(rows):
            seen = example["history"][i] if i < len(example["history"]) else ""
            item = example["items"][i] if i < len(example["items"]) else None
            table.add_row(seen, item["title"] if item else "", item["source"] if item else "")
        console.print(table)
    console.print(f" {report['total_seconds']:.0f} s, peak memory {report['peak_rss_gb']:.1f} GB, model version {report['model_version']}", highlight=False)
    console.print(" next: ugt serve run   (keeps it up)   ·   ugt evaluate --predictions out.parquet   ·   docs/", highlight=False)


def examples_of(base_url: str, artifacts: dict[str, Artifact], seed: int, users: int = 2, shown: int = 8) -> list[dict[str, Any]]:
    """A few users with their newest events and what the running system recommends them, in titles."""
    rows = read_table(artifacts["etl"].path / "items").select(["item_index", "item_id", "title", "year", "genres"]).to_pylist()
    title = {row["item_id"]: _title(row) for row in rows}
    histories = read_table(artifacts["histories"].path / "histories").select(["user_id", "item_index"]).to_pylist()
    chosen = random.Random(seed).sample([row for row in histories if len(row["item_index"]) >= 5] or histories, k=users)
    examples = []
    with Client(base_url) as client:
        for row in chosen:
            answer = client.recommend(user_id=row["user_id"], size=shown)
            items = [{"title": title[item.item_id], "source": item.source, "score": item.score} for item in answer.items]
            history = [_title(rows[i]) for i in reversed(row["item_index"][-shown:])]
            examples.append({"user_id": row["user_id"], "history": history, "items": items})
    return examples


def _title(row: dict[str, Any]) -> str:
    year = f" ({row['year']})" if row["year"] else ""
    genres = f" [{', '.join(row['genres'][:3])}]" if row["genres"] else ""
    return f"{row['title']}{year}{genres}"

"""`ugt bench`: the benchmarks as commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ray_app.cli_options import ConfigPath, DataDir, ImdbDir, JsonPath, Seed, Source, console, settings_of, writable, write_json
from ugt.schema import HEADS, UGTError

bench_app = typer.Typer(no_args_is_help=True, help="Benchmarks.")


@bench_app.command("serve")
def bench_serve(
    config: ConfigPath = None,
    requests: Annotated[int, typer.Option(help="Requests in all.")] = 10_000,
    concurrency: Annotated[int, typer.Option(help="Clients of the second part.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of users, filters and sizes.")] = 0,
    json_path: JsonPath = None,
) -> None:
    """Load on the production version: latency, throughput, and every answer judged for illegal items."""
    from ray_app import serving
    from ray_app.bench import serve as bench
    from ray_app.cluster import connected

    settings = settings_of(config)
    version = serving.find(settings)
    serving.app.check_port(settings.serve.host, settings.serve.port)
    writable(json_path, "--json")
    with connected(settings.ray), serving.served(settings, version) as base_url:
        before = serving.shown_before(settings, version)
        etl_dir, histories_dir = version.steps["etl"], version.steps["histories"]
        report = bench.run(base_url, etl_dir, histories_dir, requests=requests, concurrency=concurrency, seed=seed, before=before)
    console.print_json(json.dumps(report))
    write_json(json_path, report)
    if report["illegal"]:
        raise UGTError(f"{report['illegal']} illegal items were recommended: see `faults` above.")


@bench_app.command("train")
def bench_train(
    config: ConfigPath = None,
    items: Annotated[int, typer.Option(help="Items of the generated catalogue.")] = 12_101,
    mean_length: Annotated[float, typer.Option(help="Mean length of the generated histories.")] = 7.0,
    vector_width: Annotated[int, typer.Option(help="Columns of an item's content vector.")] = 300,
    steps: Annotated[int, typer.Option(help="Training steps of a turn.")] = 10,
    rounds: Annotated[int, typer.Option(help="Turns of each kind.")] = 5,
    json_path: JsonPath = None,
) -> None:
    """Positions trained per second, share of the arithmetic limit, two workers against one; one thread each. Without --config: configs/quality.yaml."""
    from ray_app.bench import train as bench
    from ray_app.jobs import root

    settings = settings_of(config or root() / "configs" / "quality.yaml")
    writable(json_path, "--json")
    one_thread = settings.training.model_copy(update={"threads": 1})
    report = bench.run(settings.model, one_thread, items=items, mean_length=mean_length, vector_width=vector_width, steps=steps, rounds=rounds)
    console.print_json(json.dumps({k: v for k, v in report.items() if k not in ("model", "training", "host")}))
    write_json(json_path, report)


@bench_app.command("quality")
def bench_quality(
    config: ConfigPath = None,
    source: Source = None,
    data_dir: DataDir = None,
    imdb_dir: ImdbDir = None,
    budget_minutes: Annotated[float, typer.Option(help="Wall time from parsed events to the last checkpoint.")] = 3.0,
    seed: Seed = None,
    text: Annotated[bool, typer.Option(help="Text vectors of the items (their encoding is timed apart).")] = True,
    hold_out: Annotated[
        float, typer.Option(help="Keep this share of the items from the training, insert them as new ones, and measure that too.", min=0, max=0.9)
    ] = 0.0,
    json_path: JsonPath = None,
    predictions: Annotated[Path | None, typer.Option(help="Also write the top-50 of every test user here (Parquet).")] = None,
) -> None:
    """Train within a budget of wall time from raw files, and evaluate beside the baselines."""
    from ray_app.bench import quality as bench

    writable(json_path, "--json")
    writable(predictions, "--predictions")
    settings = settings_of(config, source, data_dir, imdb_dir, seed)
    flags: dict[str, Any] = {"source": settings.source, "data_dir": settings.data_dir, "imdb_dir": settings.imdb_dir, "seed": settings.seed}
    flags |= ({} if text else {"text.enabled": False}) | ({"etl.hold_out": hold_out, "etl.hold_out_seed": settings.seed} if hold_out else {})
    report = bench.run(flags, config, budget_minutes, console, predictions)
    for head in HEADS:
        rows = "   ".join(f"{rule} R@10 {report[head][rule]['recall@10']:.4f} N@10 {report[head][rule]['ndcg@10']:.4f}" for rule in ("unfiltered", "filtered"))
        console.print(f" {head:<14} {rows}", highlight=False, soft_wrap=True)
    if hold_out:
        unseen, seen = report["new_items"]["test"]["unseen"], report["new_items"]["test"]["seen"]
        for name in ("model", "nearest_slot", "slot", "gated_slot_points", "gated_slot"):
            cost = f" ({-seen[name]['loss']['relative']:+.1%}, {-seen[name]['loss']['points']:+.2f} points)" if "loss" in seen[name] else ""
            figures = f"unseen R@10 {unseen[name]['recall@10']:.4f}   seen R@10 {seen[name]['recall@10']:.4f}{cost}"
            console.print(f" {name:<17} {figures}", highlight=False, soft_wrap=True)
    console.print(f" {report['train_seconds']:.0f} s of {budget_minutes * 60:.0f} s, {report['params']:,} parameters", highlight=False)
    write_json(json_path, report)


@bench_app.command("decode")
def bench_decode(
    config: ConfigPath = None,
    version: Annotated[str | None, typer.Option(help="Version in the registry (or production) whose model is taken instead of a generated one.")] = None,
    beam: Annotated[int, typer.Option(help="Beam width.")] = 50,
    items: Annotated[int, typer.Option(help="Items of the generated catalogue.")] = 12_101,
    large_items: Annotated[int, typer.Option(help="Items of the large one; 0 leaves it out.")] = 1_000_000,
    width: Annotated[int, typer.Option(help="Width of the generated model; --config gives all of its sizes.")] = 128,
    rounds: Annotated[int, typer.Option(help="Single requests of each contender.")] = 200,
    batch_rounds: Annotated[int, typer.Option(help="Batches of 32 of each contender.")] = 20,
    sequences: Annotated[int, typer.Option(help="Decoded items that are judged for legality.")] = 1_000_000,
    seed: Annotated[int, typer.Option(help="Seed of trie, weights and requests.")] = 0,
    json_path: JsonPath = None,
) -> None:
    """Time of the constrained decode: ONNX Runtime, PyTorch, int8, fp16, a million items, a Hugging Face model; legality of what comes out."""
    from ray_app.bench import decode as bench
    from ray_app.bench.generated import model_of

    writable(json_path, "--json")
    settings = settings_of(config)
    sizes = settings.model if config else bench.DecodeBench().model.model_copy(update={"width": width, "heads": max(1, width // 32)})
    options = {"beam": beam, "items": items, "large_items": large_items, "rounds": rounds, "batch_rounds": batch_rounds, "sequences": sequences, "seed": seed}
    asked = bench.DecodeBench(model=sizes, **options)
    report = bench.run(asked, model_of(settings, version) if version else None, lambda text: console.print(f" {text}", highlight=False, soft_wrap=True))
    console.print(
        f" {report['ratio_to_hf_generate']}x Hugging Face, {report['illegal']} illegal of {report['sequences']:,} sequences", highlight=False, soft_wrap=True
    )
    write_json(json_path, report)
    if report["illegal"]:
        raise UGTError(f"{report['illegal']} illegal items were decoded.")


@bench_app.command("semantic-ids")
def bench_semantic_ids(
    items: Annotated[int, typer.Option(help="Items of the generated catalogue.", min=2000)] = 1_000_000,
    width: Annotated[int, typer.Option(help="Columns of an item vector.", min=4)] = 256,
    threads: Annotated[int, typer.Option(help="Threads of either side.", min=1)] = 2,
    seed: Annotated[int, typer.Option(help="Seed of vectors and fit.")] = 0,
    json_path: JsonPath = None,
) -> None:
    """Semantic IDs of a large catalogue beside faiss' residual quantiser: error, neighbours, time, memory; and new items, one at a time."""
    from ray_app.bench import semantic_ids as bench

    writable(json_path, "--json")
    report = bench.run(items, width, seed, threads, lambda text: console.print(f" {text}", highlight=False, soft_wrap=True))
    console.print(f" error {report['error_ratio']}x faiss', {report['collisions']} collisions", highlight=False, soft_wrap=True)
    write_json(json_path, report)
    if report["collisions"]:
        raise UGTError(f"{report['collisions']} items share a semantic ID with another.")

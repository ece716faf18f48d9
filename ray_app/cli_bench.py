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


@bench_app.command("etl")
def bench_etl(
    config: ConfigPath = None,
    scale: Annotated[float, typer.Option(min=0.0001, max=1, help="Share of IMDb's real size (12 million titles, 90 million principals).")] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of the generated files.")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of pipeline and polars; medians count.")] = 1,
    polars: Annotated[bool, typer.Option("--polars/--no-polars", help="Compare with one process of polars.")] = True,
    nodes: Annotated[bool, typer.Option("--nodes/--no-nodes", help="Also compare two nodes of one CPU with one.")] = False,
    folder: Annotated[Path | None, typer.Option(help="Where files and outputs lie; default: bench/etl in UGT_HOME.")] = None,
    json_path: JsonPath = None,
) -> None:
    """IMDb's files at a share of their size: the pipeline, beside one process of polars, and on two nodes."""
    from ray_app.bench import etl as bench

    settings = settings_of(config)
    writable(json_path, "--json")
    report = bench.run(scale, seed, folder or settings.home / "bench" / "etl", repeats=repeats, polars=polars, nodes=nodes)
    console.print_json(json.dumps(report))
    write_json(json_path, report)


@bench_app.command("features")
def bench_features(
    reads: Annotated[int, typer.Option(help="Reads of each kind.")] = 5000,
    others: Annotated[int, typer.Option(help="Users beside the 200 measured ones.")] = 10_000,
    events: Annotated[int, typer.Option(help="Events of each user.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the generated users.")] = 0,
    json_path: JsonPath = None,
) -> None:
    """Time of the online feature read beyond a bare round trip to the same Redis."""
    from ray_app.bench import features as bench

    writable(json_path, "--json")
    report = bench.run(reads=reads, others=others, events=events, seed=seed)
    for name in ("bare", "state", "state_and_features"):
        console.print(
            f" {name:<19} p5 {report[name]['p5_ms']:.3f} ms   p50 {report[name]['p50_ms']:.3f} ms   p99 {report[name]['p99_ms']:.3f} ms", highlight=False
        )
    beyond = f"{report['p99_beyond_bare_ms']:.3f} ms, with features {report['p99_beyond_bare_with_features_ms']:.3f} ms"
    console.print(f" p99 beyond a bare round trip: {beyond} (bar {report['bar_ms']:g} ms)", highlight=False, soft_wrap=True)
    write_json(json_path, report)


@bench_app.command("word2vec")
def bench_word2vec(
    config: ConfigPath = None,
    titles: Annotated[int, typer.Option(help="Items of the generated catalogue.")] = 4_000,
    users: Annotated[int, typer.Option(help="Users with a history.")] = 2_000,
    events: Annotated[int, typer.Option(help="Events of all users.")] = 100_000,
    epochs: Annotated[int, typer.Option(help="Epochs of a training.")] = 10,
    rounds: Annotated[int, typer.Option(help="Trainings of each contender, one seed each.")] = 3,
    seed: Annotated[int, typer.Option(help="First seed.")] = 0,
    json_path: JsonPath = None,
) -> None:
    """Words per second against plain gensim, two Ray workers against one, and whether neighbours are as good."""
    from ray_app.bench import word2vec as bench
    from ray_app.cluster import connected

    writable(json_path, "--json")
    settings = settings_of(config)
    asked = bench.Word2VecBench(titles=titles, users=users, events=events, epochs=epochs, rounds=rounds, seed=seed)
    with connected(settings.ray):
        report = bench.run(asked, lambda text: console.print(f" {text}", highlight=False, soft_wrap=True))
    for row in report["rows"]:
        console.print(f" {row['value']:<7} {row['name']}" + (f"   bar {row['bar']}" if row["bar"] else ""), highlight=False, soft_wrap=True)
    for kind, of in report["quality"].items():
        console.print(f" same {kind:<9} " + "   ".join(f"{name} {of[name]['rate']}" for name in bench.CONTENDERS), highlight=False, soft_wrap=True)
    write_json(json_path, report)


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

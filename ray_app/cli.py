"""The `ugt` command: every step, the demo, the server, jobs and benchmarks."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ugt.artifacts import Artifact, usable_folder, write_text
from ugt.schema import UGTError
from ugt.settings import Settings, load_settings

console = Console(width=None if sys.stdout.isatty() else 140)

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Generative recommendation as one Ray application.")
data_app = typer.Typer(no_args_is_help=True, help="Sources to canonical tables, features and histories.")
train_app = typer.Typer(no_args_is_help=True, help="Vectors, semantic IDs and the model.")
export_app = typer.Typer(no_args_is_help=True, help="The model for other runtimes.")
models_app = typer.Typer(no_args_is_help=True, help="Versions in the registry.")
serve_app = typer.Typer(no_args_is_help=True, help="The serving graph.")
job_app = typer.Typer(no_args_is_help=True, help="Any ugt command as a Ray job.")
cluster_app = typer.Typer(no_args_is_help=True, help="A local Ray head that stays up, for jobs.")
bench_app = typer.Typer(no_args_is_help=True, help="Benchmarks.")
for name, group in (
    ("data", data_app),
    ("train", train_app),
    ("export", export_app),
    ("models", models_app),
    ("serve", serve_app),
    ("job", job_app),
    ("cluster", cluster_app),
    ("bench", bench_app),
):
    app.add_typer(group, name=name)

ConfigPath = Annotated[Path | None, typer.Option("--config", "-c", help="Settings file (YAML); presets are in configs/.")]
Source = Annotated[str | None, typer.Option(help="sample, imdb, movielens, amazon or sequences.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder with that source's files.")]
ImdbDir = Annotated[Path | None, typer.Option(help="Folder with IMDb's TSV files, joined to MovieLens by its links.")]
Seed = Annotated[int | None, typer.Option(help="One seed for everything.")]
JsonPath = Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")]
Address = Annotated[str, typer.Option(help="Address of the Ray dashboard, default http://127.0.0.1:8265.")]


def settings_of(
    config: Path | None, source: str | None = None, data_dir: Path | None = None, imdb_dir: Path | None = None, seed: int | None = None, **flags: Any
) -> Settings:
    def absolute(path: Path | None) -> str | None:
        return str(path.absolute()) if path else None

    settings = load_settings(config, {"source": source, "data_dir": absolute(data_dir), "imdb_dir": absolute(imdb_dir), "seed": seed, **flags})
    if data_dir and settings.source == "sample":
        raise UGTError(f"--data-dir {data_dir} needs --source (imdb, movielens, amazon or sequences): without it a sample would be generated.")
    return settings


def writable(path: Path | None, flag: str) -> None:
    """Raises UGTError if the file of a flag cannot be written: now, not after minutes of work."""
    if path is None:
        return
    if path.is_dir():
        raise UGTError(f"{flag}: {path} is a folder. Give the path of a file.")
    usable_folder(path.absolute().parent, flag)


def write_json(path: Path | None, report: Any) -> None:
    if path is None:
        return
    writable(path, "--json")
    try:
        write_text(path, json.dumps(report, indent=1, default=str) + "\n")
    except OSError as error:
        raise UGTError(f"cannot write {path}: {error.strerror}. Give --json a path that can be written.") from error
    console.print(f" figures written to {path}", highlight=False, soft_wrap=True)


def run_until(step: str, settings: Settings, json_path: Path | None = None, also: tuple[str, ...] = ()) -> dict[str, Artifact]:
    """Run the main job up to a step (and `also` up to others), and say where the result lies."""
    from ray_app import pipeline
    from ray_app.cluster import connected
    from ray_app.report import Progress

    writable(json_path, "--json")
    pipeline.check(settings)
    progress = Progress(console)
    with connected(settings.ray):
        artifacts = pipeline.run(settings, progress, until=(step, *also))
    last = artifacts[step]
    console.print(f" written       {last.path}", highlight=False, soft_wrap=True)
    write_json(json_path, {"step": step, "path": str(last.path), "steps": progress.steps, "figures": dict(last.manifest.figures)})
    return artifacts


@app.command()
def demo(
    config: ConfigPath = None, source: Source = None, data_dir: DataDir = None, imdb_dir: ImdbDir = None, seed: Seed = None, json_path: JsonPath = None
) -> None:
    """The whole path: data, vectors, semantic IDs, training, evaluation, export, serving, 500 requests, feedback."""
    from ray_app import pipeline

    settings = settings_of(config, source, data_dir, imdb_dir, seed)
    writable(json_path, "--json")
    pipeline.check(settings)
    from ray_app import demo as main_job  # seconds of imports, which a wrong folder need not wait for

    report = main_job.run(settings, console)
    write_json(json_path, report)
    if report["serving"]["illegal_items"] or not report["feedback_visible"]:
        raise UGTError("the run ended, but an answer held an illegal item or feedback was not visible: see the table above.")


def _step_command(group: typer.Typer, name: str, step: str, text: str) -> None:
    """One command per step of the main job; what it needs is run first, or kept if it is there."""

    @group.command(name, help=text)
    def command(
        config: ConfigPath = None, source: Source = None, data_dir: DataDir = None, imdb_dir: ImdbDir = None, seed: Seed = None, json_path: JsonPath = None
    ) -> None:
        run_until(step, settings_of(config, source, data_dir, imdb_dir, seed), json_path)


_step_command(data_app, "etl", "etl", "Source files to items, people, credits, users, events; bad rows to quarantine.")
_step_command(data_app, "features", "features", "Item features and their vocabulary.")
_step_command(data_app, "histories", "histories", "Events to user histories.")
_step_command(train_app, "autoencoder", "fusion", "Fuse features and text; the bottleneck is the item vector.")
_step_command(train_app, "word2vec", "word2vec", "Co-occurrence vectors from catalogue and events.")
_step_command(train_app, "semantic-ids", "semantic_ids", "Three codes for every item, no two items alike.")


@train_app.command("ugt")
def train_ugt(
    config: ConfigPath = None,
    source: Source = None,
    data_dir: DataDir = None,
    imdb_dir: ImdbDir = None,
    seed: Seed = None,
    start: Annotated[str | None, typer.Option("--from", help="Begin with the weights of a version (or production), or of a checkpoint's folder.")] = None,
    json_path: JsonPath = None,
) -> None:
    """The model: next-token, then contrastive, then DPO."""
    from ray_app.pipeline import last_stage

    settings = settings_of(config, source, data_dir, imdb_dir, seed)
    if start is not None:
        settings = settings_of(config, source, data_dir, imdb_dir, seed, **{"training.warm_start": str(_weights(settings, start))})
    made = run_until(last_stage(settings), settings, json_path)
    if start is not None:
        figures = made["ugt_stage1"].manifest.figures
        carried, before, after = figures["warm_start"], figures["validation_ndcg@10_at_start"], figures["validation_ndcg@10"]
        console.print(
            f" carried over  {carried['items_carried']:,} items, {carried['weights_carried']} weights; new: {carried['items_new']:,} items, gone: "
            f"{carried['items_gone']:,}; codes {'carried over' if carried['codes_carried'] else 'not carried over: the codebooks are others'}",
            highlight=False,
            soft_wrap=True,
        )
        console.print(f" validation    NDCG@10 {before:.4f} before stage 1, {after:.4f} after", highlight=False, soft_wrap=True)


def _weights(settings: Settings, start: str) -> Path:
    """The folder of weights that `--from` names. Raises UGTError if it holds none."""
    from train import warm_start
    from ugt.registry import Registry

    folder = Path(start).absolute() if Path(start).is_dir() else Registry(settings.registry_location).resolve(settings.serve.model_name, start)
    warm_start.place(folder)
    return folder


_step_command(export_app, "onnx", "export", "The constrained decode as ONNX graphs, checked against PyTorch.")


@data_app.command("materialize")
def data_materialize(config: ConfigPath = None, version: Annotated[str, typer.Option(help="A version, or production.")] = "production") -> None:
    """Load the online stores (Redis, Milvus, SQL) with the data of a model version."""
    from ray_app import serving

    settings = settings_of(config)
    figures = serving.load_stores(settings, serving.find(settings, version))
    console.print(" " + " · ".join(f"{key} {value}" for key, value in figures.items()), highlight=False, soft_wrap=True)


@data_app.command("download")
def data_download(
    name: Annotated[str, typer.Argument(help="imdb or movielens-latest-small.")], to: Annotated[Path, typer.Option(help="Folder to download into.")]
) -> None:
    """Fetch a public data set (resumed where it stopped); its licence notice is shown first."""
    from data.download import download

    download(name, to, console.print)


@app.command()
def evaluate(
    config: ConfigPath = None,
    source: Source = None,
    data_dir: DataDir = None,
    imdb_dir: ImdbDir = None,
    seed: Seed = None,
    json_path: JsonPath = None,
    predictions: Annotated[Path | None, typer.Option(help="Also write the top-50 of every test user here (Parquet).")] = None,
    curves: Annotated[bool, typer.Option("--curves", help="Also measure accuracy against diversity of the decoding strategies, on validation users.")] = False,
    against: Annotated[str | None, typer.Option(help="Compare with another run: a predictions file, an evaluation's folder, or a version.")] = None,
    page: Annotated[Path | None, typer.Option("--report", help="Also write the report page here (HTML).")] = None,
) -> None:
    """UGT and the baselines on each user's held-out event: figures, intervals, slices, a report page."""
    from ray_app import evaluation
    from ray_app.report import metrics_table

    settings = settings_of(config, source, data_dir, imdb_dir, seed)
    writable(json_path, "--json")
    writable(predictions, "--predictions")
    writable(page, "--report")
    other = evaluation.find(settings, against) if against else None
    artifacts = run_until("evaluate", settings, also=("curves",) if curves else ())
    folder = artifacts["evaluate"].path
    report = json.loads((folder / "metrics.json").read_text())
    console.print(" Held-out event of each user, whole catalogue ranked, seen items filtered:", highlight=False)
    console.print(metrics_table(report["metrics"]))
    if curves:
        report["curves"] = evaluation.curves(artifacts, console)
    if other is not None:
        report["comparison"] = evaluation.compared(artifacts, other, report["protocol"], settings)
        console.print(f" {report['comparison']['sentence']}", highlight=False, soft_wrap=True)
    if page is not None:
        evaluation.write_page(page, report, artifacts)
        console.print(f" report written to {page}", highlight=False, soft_wrap=True)
    if predictions is not None:
        try:
            shutil.copyfile(folder / "predictions.parquet", predictions)
        except OSError as error:
            raise UGTError(f"cannot write {predictions}: {error.strerror}. Give --predictions a path that can be written.") from error
        console.print(f" predictions written to {predictions}", highlight=False, soft_wrap=True)
    write_json(json_path, report)


@app.command()
def tune(
    config: ConfigPath = None,
    source: Source = None,
    data_dir: DataDir = None,
    imdb_dir: ImdbDir = None,
    seed: Seed = None,
    space: Annotated[Path | None, typer.Option(help="Search space (YAML); the recommended one if not given.")] = None,
    trials: Annotated[int, typer.Option(help="How many draws from the space.")] = 16,
    epochs: Annotated[int, typer.Option(help="Most epochs of a trial.")] = 20,
    out: Annotated[Path, typer.Option(help="Where the best values go, as a preset.")] = Path("best.yaml"),
    json_path: JsonPath = None,
) -> None:
    """Search model and training settings with ASHA, on validation; goes on where it was killed."""
    from ray_app import pipeline, tuning
    from ray_app.cluster import connected
    from tune.sweep import SweepConfig

    settings = settings_of(config, source, data_dir, imdb_dir, seed, **{"training.stage1.epochs": epochs})
    writable(out, "--out")
    writable(json_path, "--json")
    pipeline.check(settings)
    with connected(settings.ray):
        report = tuning.run(settings, space, SweepConfig(trials=trials, max_reports=epochs, driver_cpus=1.0, seed=settings.seed), out, console)
    for trial in report["trials"][:5]:
        console.print(f" {trial['metric'] or 0:.4f}  {trial['values']}", highlight=False, soft_wrap=True)
    console.print(f" best values written to {out}   next: ugt train ugt --config {out}", highlight=False, soft_wrap=True)
    write_json(json_path, report)


@models_app.command("list")
def models_list(config: ConfigPath = None, json_path: JsonPath = None) -> None:
    """Versions in the registry; the one in production is marked."""
    from ugt.registry import Registry

    settings = settings_of(config)
    registry = Registry(settings.registry_location)
    name = settings.serve.model_name
    production = registry.production(name)
    versions = registry.versions(name)
    if not versions:
        console.print(f" no version of '{name}' yet. next: ugt demo")
    for version in versions:
        console.print(f" {version}{'  production' if version == production else ''}", highlight=False)
    write_json(json_path, {"name": name, "versions": versions, "production": production})


@models_app.command("show")
def models_show(version: str, config: ConfigPath = None) -> None:
    """The card of a version: what it was made from and what was measured."""
    from ugt.registry import Registry

    settings = settings_of(config)
    console.print_json(json.dumps(Registry(settings.registry_location).card(settings.serve.model_name, version), default=str))


@models_app.command("promote")
def models_promote(version: str, config: ConfigPath = None) -> None:
    """Make a version the one in production."""
    from ugt.registry import Registry

    settings = settings_of(config)
    Registry(settings.registry_location).promote(settings.serve.model_name, version)
    console.print(f" {version} is in production", highlight=False)


@models_app.command("rollback")
def models_rollback(config: ConfigPath = None) -> None:
    """Make the version that was in production before the present one again."""
    from ugt.registry import Registry

    settings = settings_of(config)
    console.print(f" {Registry(settings.registry_location).rollback(settings.serve.model_name)} is in production", highlight=False)


@serve_app.command("run")
def serve_run(config: ConfigPath = None, version: Annotated[str, typer.Option(help="A version, or production.")] = "production") -> None:
    """Serve a version over HTTP until Ctrl-C."""
    import signal

    from ray_app import serving
    from ray_app.cluster import connected

    settings = settings_of(config)
    found = serving.find(settings, version)
    serving.app.check_port(settings.serve.host, settings.serve.port)  # before Ray is started
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # `kill` takes the graph down as Ctrl-C does
    with connected(settings.ray) as dashboard, serving.served(settings, found) as base_url:
        console.print(f" serving {found.number} on {base_url}   API {base_url}/docs   dashboard {dashboard}   Ctrl-C ends it", highlight=False, soft_wrap=True)
        signal.pause()


@serve_app.command("status")
def serve_status(config: ConfigPath = None, json_path: JsonPath = None) -> None:
    """Whether the server answers, and the state of each part it depends on."""
    import httpx

    settings = settings_of(config)
    url = f"http://{settings.serve.host}:{settings.serve.port}/ready"
    try:
        answer = httpx.get(url, timeout=10)
    except httpx.HTTPError as error:
        raise UGTError(f"nothing answers at {url}. Start it: ugt serve run") from error
    console.print_json(answer.text)
    write_json(json_path, answer.json())
    if answer.status_code != 200:
        raise UGTError("the server is up but not ready: the part that is not 'ok' is named above.")


@serve_app.command("config")
def serve_config() -> None:
    """Print the file for `serve deploy` and RayService."""
    from ray_app.jobs import root

    console.print((root() / "configs" / "serve.yaml").read_text(), highlight=False, markup=False, soft_wrap=True)


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
    """Positions trained per second, share of the arithmetic limit, two workers against one; one thread each."""
    from ray_app.bench import train as bench

    settings = settings_of(config)
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
    json_path: JsonPath = None,
    predictions: Annotated[Path | None, typer.Option(help="Also write the top-50 of every test user here (Parquet).")] = None,
) -> None:
    """Train within a budget of wall time from raw files, and evaluate beside the baselines."""
    from ray_app.bench import quality as bench

    writable(json_path, "--json")
    writable(predictions, "--predictions")
    settings = settings_of(config, source, data_dir, imdb_dir, seed)
    flags = {"source": settings.source, "data_dir": settings.data_dir, "imdb_dir": settings.imdb_dir, "seed": settings.seed}
    report = bench.run(flags | ({} if text else {"text.enabled": False}), config, budget_minutes, console, predictions)
    for head in ("fused", "generative", "dense"):
        rows = "   ".join(f"{rule} R@10 {report[head][rule]['recall@10']:.4f} N@10 {report[head][rule]['ndcg@10']:.4f}" for rule in ("unfiltered", "filtered"))
        console.print(f" {head:<13} {rows}", highlight=False, soft_wrap=True)
    console.print(f" {report['train_seconds']:.0f} s of {budget_minutes * 60:.0f} s, {report['params']:,} parameters", highlight=False)
    write_json(json_path, report)


@job_app.command("submit", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def job_submit(context: typer.Context, address: Address = "", wait: Annotated[bool, typer.Option(help="Follow the log to the end.")] = True) -> None:
    """Run `ugt ARGUMENTS` as a Ray job: ugt job submit -- demo --source sample."""
    from ray_app import jobs

    env = {name: value for name, value in os.environ.items() if name.startswith("UGT_")} | {"UGT_HOME": str(settings_of(None).home)}
    job_id = jobs.submit(address, [a for a in context.args if a != "--"], env)
    console.print(f" submitted {job_id}", highlight=False)
    if wait and not jobs.follow(address, job_id):
        raise UGTError(f"job {job_id} did not succeed: its log is above, or `ugt job logs {job_id}`.")


@job_app.command("list")
def job_list(address: Address = "") -> None:
    """Jobs of the cluster, newest first."""
    from ray_app import jobs

    for row in jobs.listing(address):
        console.print(f" {row['id']:<28} {row['status']:<10} {row['command']}", highlight=False, markup=False)


@job_app.command("logs")
def job_logs(job_id: str, address: Address = "") -> None:
    """The log of a job."""
    from ray_app import jobs

    sys.stdout.write(jobs.logs(address, job_id))


@job_app.command("stop")
def job_stop(job_id: str, address: Address = "") -> None:
    """Stop a job."""
    from ray_app import jobs

    console.print(f" {job_id} {'stopping' if jobs.stop(address, job_id) else 'had already ended'}", highlight=False)


@cluster_app.command("up")
def cluster_up(config: ConfigPath = None) -> None:
    """Start a local Ray head on loopback and leave it up."""
    from ray_app import head

    status = head.up(settings_of(config))
    console.print(f" up            {status['address']}   dashboard {status['dashboard']}", highlight=False)
    console.print(" next          ugt job submit -- demo   ·   ugt cluster down", highlight=False)


@cluster_app.command("status")
def cluster_status(config: ConfigPath = None, json_path: JsonPath = None) -> None:
    """Whether the head is up, and where its dashboard is."""
    from ray_app import head

    status = head.state(settings_of(config))
    console.print(f" {'up' if status['up'] else 'down'}   {status['address']}   {status['dashboard']}", highlight=False)
    write_json(json_path, status)


@cluster_app.command("down")
def cluster_down(config: ConfigPath = None) -> None:
    """End the head that `up` started, and no other Ray process of the machine."""
    from ray_app import head

    ended = head.down(settings_of(config))
    console.print(f" {f'{ended} processes ended' if ended else 'no head of ours was up'}", highlight=False)


def main() -> None:
    """Entry of `ugt`: an error a person can mend is one message and exit code 1, never a stack trace."""
    from ray_app.errors import plain

    try:
        app(prog_name="ugt")
    except Exception as error:
        known = plain(error)
        if known is None:
            raise
        Console(stderr=True, width=console.width).print(f"[bold red]error[/bold red] {known}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped. Finished steps are kept; run it again to go on.")
        sys.exit(130)

"""The `ugt` command: every step, the demo, the server, jobs and benchmarks."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ray_app.cli_bench import bench_app
from ray_app.cli_cluster import cluster_app, job_app
from ray_app.cli_data import data_app
from ray_app.cli_governance import add_to as add_governance
from ray_app.cli_options import ConfigPath, DataDir, ImdbDir, JsonPath, Seed, Source, console, settings_of, writable, write_json
from ray_app.cli_steps import run_until, step_command
from ray_app.cli_word2vec import export_projector, train_word2vec, word2vec_app
from ray_app.report import health_lines
from ugt.schema import UGTError
from ugt.settings import Settings

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help="Generative recommendation as one Ray application.")
train_app = typer.Typer(no_args_is_help=True, help="Vectors, semantic IDs and the model.")
export_app = typer.Typer(no_args_is_help=True, help="The model for other runtimes.")
models_app = typer.Typer(no_args_is_help=True, help="Versions in the registry.")
serve_app = typer.Typer(no_args_is_help=True, help="The serving graph.")
add_governance(data_app)
for name, group in (
    ("data", data_app),
    ("train", train_app),
    ("export", export_app),
    ("models", models_app),
    ("serve", serve_app),
    ("job", job_app),
    ("cluster", cluster_app),
    ("bench", bench_app),
    ("word2vec", word2vec_app),
):
    app.add_typer(group, name=name)


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


step_command(train_app, "autoencoder", "fusion", "Fuse features and text; the bottleneck is the item vector.")
train_app.command("word2vec")(train_word2vec)
step_command(train_app, "semantic-ids", "semantic_ids", "Three codes for every item, no two items alike.", health_lines)


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
    from ray_app.steps import last_stage

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


export_app.command("projector")(export_projector)
step_command(export_app, "onnx", "export", "The constrained decode as ONNX graphs, checked against PyTorch.")


@export_app.command("triton")
def export_triton(
    out: Annotated[Path, typer.Option(help="Model repository to write into.")],
    config: ConfigPath = None,
    version: Annotated[str, typer.Option(help="A version, or production.")] = "production",
    name: Annotated[str, typer.Option(help="Name of the model; the other strategies append theirs.")] = "ugt",
    provider: Annotated[str, typer.Option(help="cpu, cuda or tensorrt.")] = "cpu",
    json_path: JsonPath = None,
) -> None:
    """A Triton model repository of a version: config.pbtxt and graph per decoding strategy, the tables beside them."""
    from ray_app import serving
    from train.triton import write_repository

    writable(json_path, "--json")
    found = serving.find(settings_of(config), version)
    folders = write_repository(found.folder, out, name, provider)  # type: ignore[arg-type]  # a name that is none is refused there
    for folder in folders.values():
        console.print(f" written       {folder}", highlight=False, soft_wrap=True)
    write_json(json_path, {"version": found.number, "models": {model: str(folder) for model, folder in folders.items()}})


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

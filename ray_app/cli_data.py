"""`ugt data`: sources to canonical tables, features, histories and the online stores."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer

from ray_app.cli_options import ConfigPath, DataDir, ImdbDir, JsonPath, Seed, Source, console, settings_of, writable, write_json
from ray_app.cli_steps import run_until, step_command
from ugt.schema import UGTError

data_app = typer.Typer(no_args_is_help=True, help="Sources to canonical tables, features and histories.")

step_command(data_app, "etl", "etl", "Source files to items, people, credits, users, events; bad rows to quarantine.")
step_command(data_app, "features", "features", "Item features and their vocabulary.")
step_command(data_app, "histories", "histories", "Events to user histories.")
step_command(data_app, "corpus", "corpus", "Catalogue and histories to the sentences of Word2Vec.")


@data_app.command("quality")
def data_quality(
    config: ConfigPath = None,
    source: Source = None,
    data_dir: DataDir = None,
    imdb_dir: ImdbDir = None,
    seed: Seed = None,
    against: Annotated[
        str | None, typer.Option(help="Another run of the ETL, by key or folder; the newest earlier one of the same files if not given.")
    ] = None,
    json_path: JsonPath = None,
) -> None:
    """Rules, profile and drift of the canonical tables, and their report page; a failed CRITICAL rule is an error."""
    from ray_app import quality

    settings = settings_of(config, source, data_dir, imdb_dir, seed, **{"quality.against": against})
    quality.find(settings)
    quality.tell(run_until("quality", settings, json_path)["quality"].path, console)


@data_app.command("materialize")
def data_materialize(config: ConfigPath = None, version: Annotated[str, typer.Option(help="A version, or production.")] = "production") -> None:
    """Load the online stores (Redis, Milvus, SQL) with the data of a model version."""
    from ray_app import serving

    settings = settings_of(config)
    figures = serving.load_stores(settings, serving.find(settings, version))
    _summary(figures)


@data_app.command("ingest")
def data_ingest(
    origin: Annotated[str, typer.Option("--from", help="A folder, or a URI (file://, s3://, gs://) of one, that holds a source's files; or: events.")],
    name: Annotated[str | None, typer.Option(help="Name below UGT_HOME/sources, instead of what the source is called.")] = None,
    follow: Annotated[bool, typer.Option(help="With events: go on until interrupted, a file every few seconds.")] = False,
    config: ConfigPath = None,
    json_path: JsonPath = None,
) -> None:
    """Copy a source's files into UGT_HOME/sources (resumed, checked); `--from events`: what people did since the last time, from Redis to the event log."""
    writable(json_path, "--json")
    settings = settings_of(config)
    if origin != "events":
        from data.ingest import ingest

        write_json(json_path, {"written": [str(path) for path in ingest(origin, settings.home, say, name)]})
        return
    from data import event_log
    from ugt.stores import embedded

    url = settings.stores.redis_url or embedded.ensure_redis(settings.home)
    figures = event_log.drain(url, settings.home / event_log.FOLDER, follow=follow, tell=lambda text: say(f" {text}"))
    _summary(figures)
    write_json(json_path, figures)


@data_app.command("compact")
def data_compact(config: ConfigPath = None, json_path: JsonPath = None) -> None:
    """The event log's small files to one a day, each event once, sorted by user and time."""
    from data import event_log

    writable(json_path, "--json")
    settings = settings_of(config)
    figures = event_log.compact(settings.home / event_log.FOLDER)
    _summary(figures)
    write_json(json_path, figures)


@data_app.command("backfill")
def data_backfill(
    first: Annotated[str, typer.Option("--from", help="First day, YYYY-MM-DD (UTC).")],
    last: Annotated[str, typer.Option("--to", help="Last day, included.")],
    config: ConfigPath = None,
    version: Annotated[str, typer.Option(help="Whose tables the events come from, beside the event log: a version, or production.")] = "production",
    json_path: JsonPath = None,
) -> None:
    """Features of every user and item as of the end of each day, to <home>/features/<name>/date=...; days that are there are skipped."""
    from data import event_log
    from data.offline_features import backfill
    from ray_app import serving
    from ray_app.cluster import connected

    writable(json_path, "--json")
    days = _day(first, "--from"), _day(last, "--to")
    settings = settings_of(config)
    etl_dir = serving.find(settings, version).steps["etl"]
    with connected(settings.ray):
        figures = backfill(etl_dir, settings.home / event_log.FOLDER, settings.home / "features", *days, parts=settings.etl.blocks)
    _summary(figures)
    write_json(json_path, figures)


def _day(text: str, flag: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise UGTError(f"{flag} {text} is no day. Write it as YYYY-MM-DD.") from error


def _summary(figures: Mapping[str, Any]) -> None:
    console.print(" " + " · ".join(f"{key} {value}" for key, value in figures.items()), highlight=False, soft_wrap=True)


@data_app.command("prefix")
def data_prefix(
    l1: Annotated[int, typer.Argument(help="First code.", min=0)],
    l2: Annotated[int | None, typer.Argument(help="Second code.", min=0)] = None,
    like: Annotated[str | None, typer.Option(help="Nearest first to this item, by vector.")] = None,
    space: Annotated[str, typer.Option(help="Vector space of --like.")] = "fused",
    limit: Annotated[int, typer.Option(help="How many items.", min=1)] = 20,
    config: ConfigPath = None,
) -> None:
    """Items of the online stores under a part of a semantic ID: in order of their IDs (SQL), or of likeness to an item (Milvus)."""
    from ray_app import serving

    for item_id, what in serving.under_prefix(settings_of(config), (l1,) if l2 is None else (l1, l2), like, space, limit):
        console.print(f" {item_id}  {what}", highlight=False, markup=False, soft_wrap=True)


@data_app.command("download")
def data_download(
    name: Annotated[str, typer.Argument(help="imdb, movielens-latest-small, movielens-1m, movielens-25m or movielens-32m.")],
    to: Annotated[Path, typer.Option(help="Folder to download into.")],
    mirror: Annotated[str | None, typer.Option(help="An address that holds the same files, instead of the publisher's.")] = None,
) -> None:
    """Fetch a public data set (resumed where it stopped, checked); its licence notice is shown first."""
    from data.download import download

    download(name, to, say, mirror)


def say(line: str) -> None:
    console.print(line, highlight=False, soft_wrap=True)

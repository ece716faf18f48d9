"""`ugt data`: sources to canonical tables, features, histories and the online stores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ray_app.cli_options import ConfigPath, DataDir, ImdbDir, JsonPath, Seed, Source, console, settings_of
from ray_app.cli_steps import run_until, step_command

data_app = typer.Typer(no_args_is_help=True, help="Sources to canonical tables, features and histories.")

step_command(data_app, "etl", "etl", "Source files to items, people, credits, users, events; bad rows to quarantine.")
step_command(data_app, "features", "features", "Item features and their vocabulary.")
step_command(data_app, "histories", "histories", "Events to user histories.")


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
    console.print(" " + " · ".join(f"{key} {value}" for key, value in figures.items()), highlight=False, soft_wrap=True)


@data_app.command("download")
def data_download(
    name: Annotated[str, typer.Argument(help="imdb or movielens-latest-small.")], to: Annotated[Path, typer.Option(help="Folder to download into.")]
) -> None:
    """Fetch a public data set (resumed where it stopped); its licence notice is shown first."""
    from data.download import download

    download(name, to, console.print)

"""`ugt data`: sources to canonical tables, features, histories and the online stores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ray_app.cli_options import ConfigPath, console, settings_of
from ray_app.cli_steps import step_command

data_app = typer.Typer(no_args_is_help=True, help="Sources to canonical tables, features and histories.")

step_command(data_app, "etl", "etl", "Source files to items, people, credits, users, events; bad rows to quarantine.")
step_command(data_app, "features", "features", "Item features and their vocabulary.")
step_command(data_app, "histories", "histories", "Events to user histories.")


@data_app.command("materialize")
def data_materialize(config: ConfigPath = None, version: Annotated[str, typer.Option(help="A version, or production.")] = "production") -> None:
    """Load the online stores (Redis, Milvus, SQL) with the data of a model version."""
    from ray_app import serving

    settings = settings_of(config)
    figures = serving.load_stores(settings, serving.find(settings, version))
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
    name: Annotated[str, typer.Argument(help="imdb or movielens-latest-small.")], to: Annotated[Path, typer.Option(help="Folder to download into.")]
) -> None:
    """Fetch a public data set (resumed where it stopped); its licence notice is shown first."""
    from data.download import download

    download(name, to, console.print)

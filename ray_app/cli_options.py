"""What the commands of `ugt` share: their common options, settings from them, the console, and the file of figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ugt.artifacts import usable_folder, write_text
from ugt.schema import UGTError
from ugt.settings import Settings, load_settings

console = Console(width=None if sys.stdout.isatty() else 140)

ConfigPath = Annotated[Path | None, typer.Option("--config", "-c", help="Settings file (YAML); presets are in configs/.")]
Source = Annotated[str | None, typer.Option(help="sample, imdb, movielens, amazon or sequences.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder with that source's files.")]
ImdbDir = Annotated[Path | None, typer.Option(help="Folder with IMDb's TSV files, joined to MovieLens by its links.")]
Seed = Annotated[int | None, typer.Option(help="One seed for everything.")]
JsonPath = Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")]


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

"""Public data sets fetched from their publishers: resumed, checked, with the licence notice first."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from ugt.artifacts import usable_folder
from ugt.schema import UGTError


@dataclass(frozen=True)
class PublicDataset:
    base: str
    files: tuple[str, ...]
    notice: str


DATASETS = {
    "imdb": PublicDataset(
        base="https://datasets.imdbws.com/",
        files=tuple(f"{t}.tsv.gz" for t in ("title.basics", "title.ratings", "title.crew", "title.principals", "title.akas", "title.episode", "name.basics")),
        notice="IMDb non-commercial data sets: personal and non-commercial use only, no republication (developer.imdb.com/non-commercial-datasets).",
    ),
    "movielens-latest-small": PublicDataset(
        base="https://files.grouplens.org/datasets/movielens/",
        files=("ml-latest-small.zip",),
        notice="MovieLens (GroupLens): research use, no commercial use without permission; cite Harper and Konstan 2015.",
    ),
}


def download(name: str, to: Path, say: Callable[[str], None]) -> list[Path]:
    """Fetch every file of a data set into `to`; a file that is there and whole is kept, a partial one is resumed.

    Raises UGTError for an unknown name, an unreachable server or a damaged file (which is removed).
    """
    if name not in DATASETS:
        raise UGTError(f"there is no data set '{name}' to download. There are: {', '.join(DATASETS)}.")
    dataset = DATASETS[name]
    say(f" {dataset.notice}")
    usable_folder(to, "--to")
    return [_fetch(dataset.base + file, to / file) for file in dataset.files]


def _fetch(url: str, path: Path) -> Path:
    if path.is_file() and not _damage(path):
        return path
    partial = path.with_name(path.name + ".partial")
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    try:
        with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=30) as answer:
            if answer.status_code == 416:  # the partial file is already the whole one
                pass
            else:
                answer.raise_for_status()
                resumed = answer.status_code == 206
                total = int(answer.headers.get("content-length", 0)) + (have if resumed else 0)
                _write(answer, partial, "ab" if resumed else "wb", total or None, have if resumed else 0)
    except httpx.HTTPError as error:
        raise UGTError(
            f"cannot download {url}: {error or type(error).__name__}. Check the network and run the command again (it resumes), "
            f"or fetch the file on another machine and put it into {path.parent}."
        ) from error
    except OSError as error:
        raise UGTError(f"cannot write {partial}: {error.strerror}. Free some space or give --to another folder, then run the command again.") from error
    damage = _damage(partial)
    if damage:
        partial.unlink()
        raise UGTError(f"{url} arrived damaged ({damage}) and was removed. Run the command again.")
    partial.replace(path)
    return path


def _write(answer: httpx.Response, partial: Path, mode: str, total: int | None, done: int) -> None:
    with Progress("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), transient=True) as progress, open(partial, mode) as f:
        task = progress.add_task(partial.name, total=total, completed=done)
        for chunk in answer.iter_bytes(1 << 18):
            f.write(chunk)
            progress.advance(task, len(chunk))


def _damage(path: Path) -> str | None:
    """What is wrong with an archive, read to its end (both formats carry checksums of their content), or None."""
    try:
        if ".zip" in path.suffixes:
            with zipfile.ZipFile(path) as archive:
                bad = archive.testzip()
                if bad:
                    raise zipfile.BadZipFile(bad)
        else:
            with gzip.open(path) as f:
                while f.read(1 << 22):
                    pass
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        return str(error) or type(error).__name__
    return None

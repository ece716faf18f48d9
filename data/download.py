"""Public data sets fetched from their publishers: the licence notice first, resumed, checked, recorded in `checksums.json`.

Choices: a lost connection is taken up again where it broke, with growing pauses; what a part belongs to is told by the server's ETag or date
(If-Range), because IMDb's files change daily and a part of yesterday's must not be completed with today's. A file that is there and recorded
is checked and kept; remove it to have it fetched anew. GroupLens publishes an MD5 beside some of its archives; IMDb publishes none, and there
the checksums inside gzip stand alone.
"""

from __future__ import annotations

import gzip
import re
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from data.fetched import Partial, Record, digest, progress_bar
from ugt.artifacts import usable_folder
from ugt.schema import UGTError


@dataclass(frozen=True)
class PublicDataset:
    base: str
    files: tuple[str, ...]
    notice: str
    source: str  # `ugt data etl --source`
    md5: bool = False  # `<file>.md5` may be beside a file


def _grouplens(name: str) -> PublicDataset:
    return PublicDataset(
        base="https://files.grouplens.org/datasets/movielens/",
        files=(f"{name}.zip",),
        notice="MovieLens (GroupLens): research use; no redistribution and no commercial use without permission; cite Harper and Konstan 2015. "
        "The README in the archive has the terms.",
        source="movielens",
        md5=True,
    )


DATASETS = {
    "imdb": PublicDataset(
        base="https://datasets.imdbws.com/",
        files=tuple(f"{t}.tsv.gz" for t in ("title.basics", "title.ratings", "title.crew", "title.principals", "title.akas", "title.episode", "name.basics")),
        notice="IMDb non-commercial data sets: personal and non-commercial use only, no republication (developer.imdb.com/non-commercial-datasets).",
        source="imdb",
    ),
    "movielens-latest-small": _grouplens("ml-latest-small"),
    "movielens-1m": _grouplens("ml-1m"),
    "movielens-25m": _grouplens("ml-25m"),
    "movielens-32m": _grouplens("ml-32m"),
}
ATTEMPTS = 6
WAIT = wait_exponential_jitter(initial=1, max=30)  # seconds


def download(name: str, to: Path, say: Callable[[str], None], mirror: str | None = None) -> list[Path]:
    """Fetch every file of a data set into `to`; a file that is there and whole is kept, a partial one is resumed.

    mirror: an address that holds the same file names, instead of the publisher's.
    Raises UGTError for an unknown name, an unreachable server, a damaged file, one with another checksum than published, and one that was
    changed since it was fetched. What arrived damaged is removed; a file that somebody else put there never is.
    """
    if name not in DATASETS:
        raise UGTError(f"there is no data set '{name}' to download. There are: {', '.join(DATASETS)}.")
    dataset = DATASETS[name]
    base = (mirror or dataset.base).rstrip("/") + "/"
    say(f" {dataset.notice}")
    usable_folder(to, "--to")
    record = Record(to)
    with httpx.Client(follow_redirects=True, timeout=30, headers={"Accept-Encoding": "identity"}) as client:
        paths = [_fetch(client, base + file, to / file, dataset, record, say) for file in dataset.files]
    say(f" next: ugt data etl --source {dataset.source} --data-dir {to}")
    return paths


def _fetch(client: httpx.Client, url: str, path: Path, dataset: PublicDataset, record: Record, say: Callable[[str], None]) -> Path:
    if path.is_file() and record.unchanged(path):
        say(f" kept {path.name}: {_size(path)}, SHA-256 as recorded (remove the file to fetch it anew)")
        return path
    started = time.monotonic()
    there, partial = path.is_file(), Partial(path)
    try:
        published = _published_md5(client, url, say) if dataset.md5 else None
        if not there:
            for attempt in _retrying(url, say):
                with attempt:
                    _transfer(client, url, partial)
    except httpx.HTTPError as error:
        raise UGTError(
            f"cannot download {url}: {error or type(error).__name__}. Check the network and run the command again (it resumes), "
            f"or fetch the file on another machine and put it into {path.parent}."
        ) from error
    except OSError as error:
        raise UGTError(f"cannot write {partial.path}: {error.strerror}. Free some space or give --to another folder, then run the command again.") from error
    arrived = path if there else partial.path
    wrong = _damage(arrived) or _wrong_md5(arrived, published)
    if wrong and there:
        raise UGTError(f"{path} was there already and is damaged ({wrong}). Remove it and run the command again.")
    if wrong:
        partial.discard()
        raise UGTError(f"{url} arrived damaged ({wrong}) and was removed. Run the command again.")
    sha256 = digest(arrived)
    record.add(path.name, sha256=sha256, bytes=arrived.stat().st_size, md5_published=published, origin=None if there else url)
    if not there:
        partial.finish()  # last, so that a file that is there is one that is recorded
    checked = "MD5 as published" if published else "archive whole"
    say(f" {'found' if there else 'fetched'} {path.name}: {_size(path)} in {time.monotonic() - started:.1f} s, {checked}, SHA-256 {sha256}")
    return path


def _retrying(url: str, say: Callable[[str], None]) -> Retrying:
    def passing(error: BaseException) -> bool:
        busy = isinstance(error, httpx.HTTPStatusError) and (error.response.status_code == 429 or error.response.status_code >= 500)
        return busy or isinstance(error, httpx.TransportError)

    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        say(f" {url}: {error or type(error).__name__}; attempt {state.attempt_number + 1} of {ATTEMPTS} in {state.upcoming_sleep:.0f} s")

    return Retrying(retry=retry_if_exception(passing), wait=WAIT, stop=stop_after_attempt(ATTEMPTS), before_sleep=tell, reraise=True)


def _published_md5(client: httpx.Client, url: str, say: Callable[[str], None]) -> str | None:
    """What `<url>.md5` says (`MD5 (file) = ...` or `... file`), or None where nothing is published."""
    for attempt in _retrying(url + ".md5", say):
        with attempt:
            answer = client.get(url + ".md5")
            if answer.status_code == 429 or answer.status_code >= 500:
                answer.raise_for_status()
    found = re.search(r"\b[0-9a-f]{32}\b", answer.text.lower()) if answer.is_success else None
    return found.group() if found else None


def _transfer(client: httpx.Client, url: str, partial: Partial) -> None:
    """One attempt: the rest of the file, or all of it where the server has another version or knows no ranges."""
    have, version = partial.size, partial.version
    headers = {"Range": f"bytes={have}-"} if have else {}
    if have and version:
        headers["If-Range"] = version
    with client.stream("GET", url, headers=headers) as answer:
        now = _version(answer)
        if answer.status_code == 416:
            length = re.fullmatch(r"bytes \*/(\d+)", answer.headers.get("content-range", ""))
            if (length and int(length.group(1)) != have) or (version and now and now != version):
                partial.discard()
                raise httpx.RemoteProtocolError("the file has another size than the part that is here; it is fetched from its beginning")
            return  # the part is the whole file
        answer.raise_for_status()
        resumed = answer.status_code == 206
        if resumed and (not answer.headers.get("content-range", "").startswith(f"bytes {have}-") or (version and now and now != version)):
            partial.discard()
            raise httpx.RemoteProtocolError("the server sent another part than was asked for; the file is fetched from its beginning")
        if not resumed:
            partial.begin(now)
        done = have if resumed else 0
        total = int(answer.headers.get("content-length", 0)) + done or None
        with progress_bar() as progress, open(partial.path, "ab") as f:
            task = progress.add_task(partial.target.name, total=total, completed=done)
            for chunk in answer.iter_raw():
                f.write(chunk)
                progress.advance(task, len(chunk))


def _version(answer: httpx.Response) -> str | None:
    """A strong ETag, else the date: what If-Range takes."""
    etag = answer.headers.get("etag", "")
    return etag if etag and not etag.startswith("W/") else answer.headers.get("last-modified")


def _damage(path: Path) -> str | None:
    """What is wrong with an archive, read to its end (both formats carry checksums of their content), or None."""
    if path.stat().st_size == 0:
        return "it is empty"
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


def _wrong_md5(path: Path, published: str | None) -> str | None:
    if published is None:
        return None
    found = digest(path, "md5")
    return None if found == published else f"its MD5 is {found}, the publisher says {published}"


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:,.1f} MB"

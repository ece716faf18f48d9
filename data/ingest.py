"""`ugt data ingest --from`: the files of a source, copied from any folder or `pyarrow.fs` URI into `<home>/sources/<name>/`.

What a folder holds is told by its file names (and what is in its zips); one folder may hold several sources, each gets its own. A file is copied
aside and renamed when whole; a copy that broke goes on where it stopped if the origin still calls it the same version (an ETag where the file system
gives one, else size and time). `checksums.json` keeps what was copied, so that a second run copies only what is new or has changed there.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from data.fetched import Partial, Record, digest, progress_bar
from data.sources import amazon, imdb, movielens, plots, sequences
from data.sources.rows import SourceFile, file_columns
from ugt.artifacts import usable_folder
from ugt.schema import UGTError

IMDB = r"(title|name)\.[a-z]+\.tsv(\.gz)?"
AMAZON_SIDE = ("datamaps.json.gz", "asin_rank.tsv.gz", "item_info.json.gz", "idgenrec.item_text_ids.txt.gz", "timestamps.tsv.gz", "s3rec_to_p5_items.tsv.gz")
BLOCK = 4 << 20


@dataclass(frozen=True)
class Ingested:
    """A source that was found: its name here, its folder, the files, and why `ugt data etl` can't take it alone (None: it can)."""

    kind: str
    folder: Path
    files: list[str]
    copied: list[str]
    lacks: str | None


def ingest(origin: str, home: Path, say: Callable[[str], None], name: str | None = None) -> list[Ingested]:
    """Copy every source in `origin` (a folder or URI). name: of the folder below `<home>/sources`, instead of what the source is called.

    Raises UGTError for an origin that can't be read or holds no source, a file that changes while it is copied, a copy that was changed since, and a
    file that isn't what its name says (by its first line).
    """
    fs, base = _opened(origin)
    return gather(fs, base, base if isinstance(fs, pafs.LocalFileSystem) else origin.rstrip("/"), home, say, name)


def gather(fs: pafs.FileSystem, base: str, origin: str, home: Path, say: Callable[[str], None], name: str | None = None) -> list[Ingested]:
    """The same from the folder `base` of a file system that is open already; `origin` is what it is called in records and messages."""
    found = {info.base_name: info for info in _listing(fs, base, origin)}
    sources = recognise(sorted(found), base.rstrip("/").rpartition("/")[2], lambda zipped: _members(fs, found[zipped].path, origin))
    if not sources:
        names = ", ".join(sorted(found)[:8]) or "no file"
        raise UGTError(
            f"{origin} holds no source: found {names}. Known are IMDb's TSVs, MovieLens (CSV, .dat or its zip), Amazon and other sequences, plot texts. "
            f"Subfolders are not searched: give the one with the files."
        )
    done = []
    for kind, files in sources.items():
        called = (name if len(sources) == 1 else f"{name}-{kind}") if name else kind
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", called):
            raise UGTError(f"--name {called} can't be the name of a folder. Use letters, digits, dots, dashes and underscores.")
        folder = home.absolute() / "sources" / called
        usable_folder(folder, "--home")
        record = Record(folder)
        copied = [file for file in files if _copy(fs, found[file], f"{origin}/{file}", folder / file, record)]
        say(f" {called}: {len(files)} files in {folder}, {len(copied)} copied, {len(files) - len(copied)} there already")
        done.append(Ingested(kind, folder, files, copied, _lacking(kind, folder)))
    left = sorted(set(found) - {file for files in sources.values() for file in files})
    if left:
        say(f" not copied, because no source reads it: {', '.join(left[:12])}{' ...' if len(left) > 12 else ''}")
    for one in done:
        say(f" {_next(one)}")
    return done


def recognise(names: list[str], folder: str, members: Callable[[str], list[str]]) -> dict[str, list[str]]:
    """The sources in a listing: by name of the source, its files. members: what is in a zip. folder: the folder's name, for which MovieLens it is."""
    found: dict[str, list[str]] = {}
    if tables := [n for n in names if re.fullmatch(IMDB, n)]:
        found["imdb"] = tables
    zips = [n for n in names if n.endswith(".zip") and {"ratings.csv", "ratings.dat"} & {m.rpartition("/")[2] for m in members(n)}]
    own = [n for n in names if _bare(n) in ("movies.csv", "ratings.csv", "links.csv", "movies.dat", "users.dat") or re.fullmatch(r"ratings.*\.dat", _bare(n))]
    for zipped in zips:
        found[_version([zipped])] = [zipped]
    if own:
        version = "movielens-1m" if any(n.endswith((".dat", ".dat.gz")) for n in own) else _version([folder])
        found[version] = found.get(version, []) + own
    if texts := [n for n in names if plots.is_plots(n)]:
        found["plots"] = texts
    taken = {n for files in found.values() for n in files}
    lines = [n for n in names if re.search(r"\.(txt|tsv)(\.gz)?$", n) and n not in taken and not n.upper().startswith("README")]
    side = [n for n in names if n in AMAZON_SIDE or _bare(n) == "p5.sequential.txt"]
    sets = [n for n in lines if _bare(n).endswith(".txt") and not n.startswith(amazon.OTHER)]
    if side and (sets or any(_bare(n) == "p5.sequential.txt" for n in side)):
        found[f"amazon-{_bare(sets[0]).removesuffix('.txt')}" if len(sets) == 1 else "amazon"] = sorted({*side, *sets})
    elif not set(found) - {"plots"} and (others := [n for n in lines if n.split(".")[0] != "items"]):
        named = [n for n in others if n.split(".")[0] == "sequences"] or others
        if len(named) == 1:
            found["sequences"] = sorted({*named, *set(lines).difference(others)})
    return found


def _bare(name: str) -> str:
    return name.removesuffix(".gz")


def _version(names: list[str]) -> str:
    """movielens-1m, movielens-25m, ... by a name like ml-25m.zip; movielens where it doesn't say."""
    found = re.search(r"ml-(1m|10m|20m|25m|32m|latest-small|latest)\b", " ".join(names))
    return f"movielens-{found.group(1)}" if found else "movielens"


# --- the origin


def _opened(origin: str) -> tuple[pafs.FileSystem, str]:
    try:
        if "://" in origin:
            return pafs.FileSystem.from_uri(origin)
        return pafs.LocalFileSystem(), str(Path(origin).expanduser().absolute())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise UGTError(f"--from {origin} can't be opened ({_short(error)}). Give a folder, or a URI of file://, s3:// or gs://.") from error


def _listing(fs: pafs.FileSystem, base: str, origin: str) -> list[pafs.FileInfo]:
    try:
        if fs.get_file_info(base).type == pafs.FileType.File:
            raise UGTError(f"--from {origin} is a file. Give the folder that holds it.")
        return [info for info in fs.get_file_info(pafs.FileSelector(base)) if info.type == pafs.FileType.File]
    except FileNotFoundError as error:
        raise UGTError(f"--from {origin}: there is no such folder. Check the path.") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise UGTError(f"--from {origin} can't be read ({_short(error)}). Check the address and the credentials of this shell.") from error


def _members(fs: pafs.FileSystem, path: str, origin: str) -> list[str]:
    try:
        with fs.open_input_file(path) as f, zipfile.ZipFile(f) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, pa.ArrowInvalid) as error:  # Arrow's, where the file is shorter than the end of a zip
        raise UGTError(f"{path.rpartition('/')[2]} in {origin} is not a whole zip file ({error}). Fetch it again, or remove it from there.") from error


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


# --- the copy


def _copy(fs: pafs.FileSystem, info: pafs.FileInfo, origin: str, path: Path, record: Record) -> bool:
    """Whether the file was copied; False if it was there already, of the same version."""
    partial = Partial(path)
    try:
        with fs.open_input_file(info.path) as f:
            etag = {k.decode(): v.decode() for k, v in f.metadata().items()}.get("ETag")
            version = etag or f"{info.size} {info.mtime_ns}"
            known = record.entries.get(path.name)
            if known and known.get("origin") != origin:
                raise UGTError(f"{path} came from {known.get('origin')}. Give what is in {origin} a folder of its own with --name, or remove that file first.")
            if path.is_file() and known is None:
                raise UGTError(f"{path} is there and was not copied by this command. Remove it, or give another --name.")
            if path.is_file() and known and known.get("version") == version and record.unchanged(path):
                return False
            if partial.version != version or partial.size > info.size:
                partial.begin(version)
            _pour(f, partial, info)
        now = fs.get_file_info(info.path)
    except OSError as error:
        raise UGTError(
            f"copying {origin} to {path} failed ({_short(error)}). Check the space on both sides and run the command again: it goes on there."
        ) from error
    if partial.size != info.size or (now.size, now.mtime_ns) != (info.size, info.mtime_ns):
        partial.discard()
        raise UGTError(f"{origin} changed while it was copied. Run the command again.")
    sha256 = digest(partial.path)
    record.add(path.name, sha256=sha256, bytes=info.size, origin=origin, version=version)
    partial.finish()  # last, so that a file that is there is one that is recorded
    return True


def _pour(f: pa.NativeFile, partial: Partial, info: pafs.FileInfo) -> None:
    have = partial.size
    f.seek(have)
    with progress_bar() as progress, open(partial.path, "ab") as out:
        task = progress.add_task(info.base_name, total=info.size, completed=have)
        while block := f.read(BLOCK):
            out.write(block)
            progress.advance(task, len(block))


# --- what it is good for


def _lacking(kind: str, folder: Path) -> str | None:
    """Why `ugt data etl` can't take this folder alone, or None. Raises UGTError if a file is not what its name says."""
    found: dict[str, SourceFile] = {}
    try:
        if kind == "plots":
            plots.files(folder)
        elif kind == "imdb":
            found = imdb.files(folder)
        elif kind.startswith("movielens"):
            found = movielens.files(folder)
        elif kind.startswith("amazon"):
            found = amazon.files(folder)
        else:
            found = sequences.files(folder)
    except UGTError as error:
        return str(error)
    for source in found.values():
        file_columns(source)
    return None


def _next(one: Ingested) -> str:
    source = one.kind.split("-")[0]
    if one.lacks:
        return f"{one.folder} can't be read as a source of its own yet: {one.lacks}"
    if source == "plots":
        return f"next: UGT_ETL__PLOTS_DIR={one.folder} ugt data etl --source movielens --data-dir DIR"
    return f"next: ugt data etl --source {source} --data-dir {one.folder}"

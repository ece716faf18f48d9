"""What passes between stages: Arrow schemas, file names, and step folders whose manifest is written last.

A step's result is a folder `<home>/artifacts/<step>/<key>/`. The key is the hash of the step's version constant, its
input keys and the settings it reads, so equal inputs find the finished folder and anything else makes a new one.
A step writes into `<key>.partial/`; the manifest is written last and the folder renamed, so a folder without the suffix is
whole. Long steps (training) keep their checkpoints in the folder `work/<step>/<key>/` of the home, which survives a kill and is removed when done.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from ugt.schema import Record, UGTError

# --- canonical tables (ETL). `item_index` is dense, 0..N-1 in ascending order of `item_id`; every matrix of item vectors
# and every history uses it. Tables are Parquet datasets: a folder with one or more files, in order of file name.
ITEMS = pa.schema(
    [
        ("item_index", pa.int32()),
        ("item_id", pa.string()),
        ("item_type", pa.string()),
        ("title", pa.string()),
        ("original_title", pa.string()),
        ("year", pa.int32()),
        ("runtime_minutes", pa.int32()),
        ("genres", pa.list_(pa.string())),
        ("countries", pa.list_(pa.string())),
        ("rating", pa.float32()),
        ("votes", pa.int64()),
        ("description", pa.string()),
        ("imdb_id", pa.string()),
    ]
)
PEOPLE = pa.schema([("person_id", pa.string()), ("name", pa.string()), ("birth_year", pa.int32()), ("professions", pa.list_(pa.string()))])
# role: actor, director, writer (IMDb's actress, self and archive categories fold into actor or are dropped by rule)
CREDITS = pa.schema([("item_index", pa.int32()), ("item_id", pa.string()), ("person_id", pa.string()), ("role", pa.string()), ("ordering", pa.int32())])
# which series an episode belongs to, where `etl.title_types` keeps single episodes (`tvEpisode`)
EPISODES = pa.schema([("item_id", pa.string()), ("parent_id", pa.string()), ("season", pa.int32()), ("episode", pa.int32())])
USERS = pa.schema([("user_id", pa.string()), ("gender", pa.string()), ("age", pa.int32()), ("occupation", pa.string())])
# `order` is the row's place in its source file: ties of `timestamp` within a user are broken by it (the tie rule).
EVENTS = pa.schema(
    [
        ("event_id", pa.string()),
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("item_index", pa.int32()),
        ("action", pa.string()),
        ("value", pa.float32()),
        ("timestamp", pa.int64()),
        ("order", pa.int64()),
    ]
)
# the event log (`data.event_log`): what people did, as it came in. `order` is the place in the stream (ties of `timestamp`, first of duplicates);
# `received_at` is the server's clock; `details` is a JSON object of the other strings the entry had (position, device, trace id, ...).
EVENT_LOG = pa.schema(
    [
        ("event_id", pa.string()),
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("action", pa.string()),
        ("value", pa.float64()),
        ("timestamp", pa.int64()),
        ("received_at", pa.int64()),
        ("request_id", pa.string()),
        ("details", pa.string()),
        ("order", pa.int64()),
    ]
)
QUARANTINE = pa.schema([("table", pa.string()), ("file", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("raw", pa.string())])
# one row per user, oldest event first; `timestamp` 0 where the source has none
HISTORIES = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_index", pa.list_(pa.int32())),
        ("action", pa.list_(pa.int32())),
        ("value", pa.list_(pa.float32())),
        ("timestamp", pa.list_(pa.int64())),
    ]
)
SEMANTIC_IDS = pa.schema([("item_index", pa.int32()), ("item_id", pa.string()), ("l1", pa.int32()), ("l2", pa.int32()), ("l3", pa.int32())])
PREDICTIONS = pa.schema([("user_id", pa.string()), ("head", pa.string()), ("filtered", pa.bool_()), ("item_ids", pa.list_(pa.string()))])
# one row per user, head and filter rule: the place of the held-out item in the list, null where it isn't in it; every figure follows from it
PER_USER = pa.schema(
    [
        ("user_id", pa.string()),
        ("target_id", pa.string()),
        ("history_length", pa.int32()),
        ("target_count", pa.int32()),
        ("head", pa.string()),
        ("filtered", pa.bool_()),
        ("place", pa.int32()),
    ]
)

MANIFEST = "manifest.json"


class Erasures(Record):
    """How often an artifact was rewritten to take a user out of it (`data.erasure`), how many rows went, and when last (Unix seconds). Names nobody."""

    users: int
    rows: int
    last: float


class Manifest(Record):
    """What a finished step says of itself. `figures` is what the step reports when it is skipped the next time.

    The fields with a default are younger than the others: manifests without them are read as they are.
    """

    step: str
    key: str
    version: int
    inputs: dict[str, str]
    settings: dict[str, Any]
    figures: dict[str, Any]
    seconds: float
    files: dict[str, int]  # bytes
    hashes: dict[str, str] = {}  # SHA-256 of every file
    created: float | None = None  # Unix seconds
    erased: Erasures | None = None


def content_hash(value: Any, length: int = 16) -> str:
    """Hex digest of a JSON-able value (pydantic models included); equal values give equal digests on every machine."""

    def encode(x: Any) -> Any:
        if isinstance(x, BaseModel):
            return x.model_dump(mode="json")
        if isinstance(x, Path):
            return str(x)
        raise TypeError(f"cannot hash a {type(x).__name__}")

    text = json.dumps(value, sort_keys=True, default=encode, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


class Artifact(Record):
    """A finished step: where it lies and what it said of itself."""

    path: Path
    manifest: Manifest
    skipped: bool

    @property
    def key(self) -> str:
        return self.manifest.key


class ArtifactStore:
    """The folder of finished steps under UGT_HOME."""

    def __init__(self, home: Path):
        self.home = Path(home).absolute()

    def path(self, step: str, key: str) -> Path:
        return self.home / "artifacts" / step / key

    def work(self, step: str, key: str) -> Path:
        """Folder for checkpoints of an unfinished step; survives a kill."""
        path = self.home / "work" / step / key
        path.mkdir(parents=True, exist_ok=True)
        return path

    def find(self, step: str, key: str) -> Artifact | None:
        """The finished artifact, or None. A folder whose manifest or files are missing counts as not there."""
        path = self.path(step, key)
        try:
            manifest = Manifest.model_validate_json((path / MANIFEST).read_text())
        except (FileNotFoundError, ValueError):
            return None
        if any(not (path / f).is_file() or (path / f).stat().st_size != size for f, size in manifest.files.items()):
            return None
        return Artifact(path=path, manifest=manifest, skipped=True)

    def run(
        self,
        step: str,
        make: Callable[[Path, Path], Mapping[str, Any]],
        *,
        version: int,
        inputs: Mapping[str, str],
        settings: Iterable[BaseModel] = (),
        extra: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """The finished artifact of a step, made now by `make(out_dir, work_dir) -> figures` if it is not there.

        `inputs` maps a name to an artifact key (or a source checksum). Raises UGTError naming the folder if the disk is full;
        the partial folder is then removed. Whatever `make` raises leaves no finished folder behind.
        """
        read = {type(s).__name__: s.model_dump(mode="json") for s in settings} | dict(extra or {})
        key = content_hash([step, version, dict(inputs), read])
        found = self.find(step, key)
        if found is not None:
            return found
        with self._home_lock(fcntl.LOCK_SH), self._alone(step, key):
            return self.find(step, key) or self._make(step, key, make, version, inputs, read)

    @contextmanager
    def exclusively(self, what: str) -> Iterator[None]:
        """No step is made while the block lasts; steps that are asked for meanwhile wait. Raises UGTError, naming `what`, if one is being made now."""
        with ExitStack() as stack:
            try:
                stack.enter_context(self._home_lock(fcntl.LOCK_EX | fcntl.LOCK_NB))
            except BlockingIOError as error:
                raise UGTError(f"{what}: a step is being made in {self.home} now. Wait for it, or end it, then run this again.") from error
            yield

    @contextmanager
    def _home_lock(self, kind: int) -> Iterator[None]:
        """Shared by the steps that are being made; alone with whatever rewrites or removes finished ones."""
        folder = self.home / "work"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "home.lock", "w") as lock:
            _flock(lock, kind)
            yield

    @contextmanager
    def _alone(self, step: str, key: str) -> Iterator[None]:
        """One process at a time makes an artifact; the others wait and then find it. The kernel lets go when the holder dies, however it dies."""
        folder = self.home / "work" / step
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{key}.lock", "w") as lock:
            _flock(lock, fcntl.LOCK_EX)
            yield

    def _make(
        self, step: str, key: str, make: Callable[[Path, Path], Mapping[str, Any]], version: int, inputs: Mapping[str, str], read: dict[str, Any]
    ) -> Artifact:
        path, partial = self.path(step, key), self.path(step, key + ".partial")
        for stale in (path, partial):
            shutil.rmtree(stale, ignore_errors=True)
        start = time.monotonic()
        try:
            partial.mkdir(parents=True)
            figures = dict(make(partial, self.work(step, key)))
            files = {str(p.relative_to(partial)): p.stat().st_size for p in sorted(partial.rglob("*")) if p.is_file()}
            manifest = Manifest(
                step=step,
                key=key,
                version=version,
                inputs=dict(inputs),
                settings=read,
                figures=figures,
                seconds=round(time.monotonic() - start, 3),
                files=files,
                hashes={file: file_hash(partial / file) for file in files},
                created=time.time(),
            )
            write_text(partial / MANIFEST, manifest.model_dump_json(indent=1))
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            if error.errno in (28, 122):  # ENOSPC, EDQUOT
                raise UGTError(
                    f"the disk of {self.home} is full (step {step}). Free some space or set UGT_HOME to another disk, then run it again: "
                    "finished steps are kept."
                ) from error
            raise
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        os.replace(partial, path)
        shutil.rmtree(self.home / "work" / step / key, ignore_errors=True)
        return Artifact(path=path, manifest=manifest, skipped=False)


def _flock(lock: IO[str], kind: int) -> None:
    try:
        fcntl.flock(lock, kind)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):  # a file system without locks: one run at a time is then up to the user
            raise


def usable_folder(path: Path, flag: str) -> None:
    """Make the folder if it is not there and prove that it can be written to. Raises UGTError naming it, and `flag` as the way to another one."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as f:
            f.write(b"x")
            f.flush()
    except OSError as error:
        raise UGTError(f"{flag}: cannot write to the folder {path} ({error.strerror}). Mend that, or name another with {flag}.") from error


def write_text(path: Path, text: str) -> None:
    """Write beside, flush to disk, then rename: a reader sees the old file or the whole new one."""
    aside = path.with_name(path.name + f".{os.getpid()}.tmp")
    try:
        with open(aside, "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def new_matrix(path: Path, rows: int, width: int) -> np.memmap:
    """A float32 `.npy` file to be filled in place. Its room is taken now: a mapped page that finds the disk full later kills the process."""
    x_NF = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, width))
    with open(path, "r+b") as f:
        os.posix_fallocate(f.fileno(), 0, path.stat().st_size)
    return x_NF


def parquet_files(path: Path) -> list[Path]:
    """The file, or the files of a dataset folder in order of name. Raises UGTError naming the folder if there is none."""
    files = [path] if path.is_file() else sorted(path.glob("*.parquet"))
    if not files:
        raise UGTError(f"no Parquet file in {path}. Run the step that writes it again.")
    return files


def read_table(path: Path, schema: pa.Schema | None = None) -> pa.Table:
    """A Parquet file or dataset folder, files in order of name. Raises UGTError naming the folder if there is none."""
    tables = [pq.read_table(f) for f in parquet_files(path)]
    return pa.concat_tables([t.select(schema.names).cast(schema) for t in tables] if schema is not None else tables)


def write_table(table: pa.Table, path: Path, part: int = 0) -> None:
    """One Parquet file inside the dataset folder `path` (created)."""
    path.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path / f"part-{part:05d}.parquet", compression="zstd")

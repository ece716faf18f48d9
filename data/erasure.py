"""`ugt data erase`: one user gone from every table, log, feature and store of a home, and a scan that proves it.

Choices: what was found is counted by a scan before, and the proof is a second scan that reads every file and every keyspace again, not a sum of what was
removed. The user's hash is recorded first (`ugt.erasure`): an erasure that is killed is known as unfinished, whatever reads sources meanwhile
drops the rows already, and the next erasure ends it. Counts over all users, model weights and the memory beside them stay as they are: they name nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import redis

from data import erasure_files as files
from data.governance import log_held
from ugt.artifacts import MANIFEST, Artifact, ArtifactStore
from ugt.erasure import FILE, Erased, SourceFile
from ugt.schema import Record, UGTError
from ugt.settings import StoresConfig
from ugt.stores import embedded
from ugt.stores.erasure import RedisTraces, is_distinctive, sql_count, sql_erase
from ugt.stores.records import Records
from ugt.stores.vectors import VectorStore

EMBEDDED = "redis"
REMAINS = (
    "sums over all users, which hold no user id: trained weights, the memory beside a model (memory.npz), baselines, popularity and item counters, figures of "
    "evaluations. They still count the user's events; train and load again to have them without"
)


class Place(Record):
    """One table, file or keyspace: rows, keys or mentions found before, removed, and found by a fresh scan afterwards."""

    place: str
    found: int
    removed: int
    left: int


@dataclass(frozen=True)
class _Stores:
    """The stores that are configured and, where they hold data, the embedded ones: a home that moved to servers of its own still has the old files."""

    redis: dict[str, redis.Redis]  # by what a report calls it; the embedded one's files are ours to rewrite
    records: dict[str, Records]
    vectors: dict[str, VectorStore]


def erase(user_id: str, home: Path, stores: StoresConfig, registry: Path | None, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Take a user out of a home and prove it; returns the report, which names the user by a salted hash only.

    `registry` is the folder of published versions (None: a remote one), which is scanned and never changed. `report["proven"]` is false if the
    fresh scan found anything. Raises UGTError if `home` is none, if a step is being made there, or if a store does not answer.
    """
    home = Path(home).absolute()
    if not any((home / part).is_dir() for part in ("artifacts", "event_log", "features", "state")):
        raise UGTError(f"there is no data of UGT in {home}. Set UGT_HOME to the folder that holds it (artifacts/, state/).")
    if not 1 <= len(user_id) <= 128 or user_id.strip() != user_id:
        raise UGTError("a user id has 1 to 128 characters and no blank at its ends.")
    store = ArtifactStore(home)
    with store.exclusively("ugt data erase"), log_held(home), _open(home, stores) as opened:
        files.recover(home)
        erased = Erased.load(home)
        for other in _interrupted(store, erased) - {user_id}:
            say("an erasure that was stopped is ended first")
            _erase_one(other, store, opened, registry, erased)
        return _erase_one(user_id, store, opened, registry, erased)


def _erase_one(user_id: str, store: ArtifactStore, stores: _Stores, registry: Path | None, erased: Erased) -> dict[str, Any]:
    start = time.monotonic()
    before, _ = _scan(user_id, store, stores, registry)
    known = erased.get(user_id)
    report: dict[str, Any] = {"user": erased.hash_of(user_id), "home": str(store.home), "erased_before": known.finished if known else None}
    if not before and known is None:
        return report | {"found": False, "proven": True, "places": [], "source_files": [], "seconds": round(time.monotonic() - start, 3)}
    entry = erased.begin(user_id, _sources(user_id, store))  # first: from here on whatever is read again drops the user
    removed = _remove(user_id, store, stores)
    after, searched = _scan(user_id, store, stores, registry)
    names = sorted({*before, *removed, *after})
    places = [Place(place=n, found=before.get(n, 0), removed=removed.get(n, 0), left=after.get(n, 0)) for n in names]
    proven = not any(p.left for p in places)
    if proven:
        erased.finish(user_id)
    return report | {
        "found": bool(before),
        "proven": proven,
        "places": [p.model_dump() for p in places],
        "scanned": searched,
        "source_files": [s.model_dump() for s in entry.sources],
        "remains": REMAINS,
        "seconds": round(time.monotonic() - start, 3),
    }


# --- the parts: files, Redis, SQL, vectors


def _scan(user_id: str, store: ArtifactStore, stores: _Stores, registry: Path | None) -> tuple[dict[str, int], dict[str, int]]:
    """(places that hold the user and how much, what was read for that): every file and keyspace is read now."""
    home = store.home
    found: dict[str, int] = {}

    def add(place: str, count: int) -> None:
        if count:
            found[place] = found.get(place, 0) + count

    paths = _files(home) + ([] if registry is None or registry.is_relative_to(home) else _files(registry))
    tables = 0
    for path in paths:
        if path.suffix in (".parquet", ".csv") and not path.is_relative_to(home / "state"):
            tables += 1
            add(_place(path, home), files.rows_in(path, user_id))
    for artifact in _artifacts(store):
        if files.user_row(artifact, store, user_id) is not None:
            add(f"{artifact.manifest.step}/{artifact.key}/arrays of users", 1)
    keys = 0
    for name, client in stores.redis.items():
        keys += client.dbsize()
        for kind, count in RedisTraces(client, user_id).count().items():
            add(f"{name}/{kind}", count)
    for name, records in stores.records.items():
        for table, count in sql_count(records, user_id).items():
            add(f"{name}/{table}", count)
    for name, vectors in stores.vectors.items():  # spaces are of items; a field of users would be one nobody told us of
        for space in vectors.spaces():
            add(f"{name}/{space}", len(set(vectors.fields(space)) & set(files.USER_COLUMNS)))
    hits, searched = files.search([p for p in paths if p.name != FILE], user_id)
    for path, count in hits.items():
        add(f"bytes of {_place(path, home, whole=True)}", count)
    return found, {"files": len(paths), "tables": tables, "files_searched_as_bytes": searched, "redis_keys": keys, "id_is_distinctive": is_distinctive(user_id)}


def _remove(user_id: str, store: ArtifactStore, stores: _Stores) -> dict[str, int]:
    """Rows and keys removed by place. Stores first, so that no event of the user is drained to the log behind it."""
    home = store.home
    gone: dict[str, int] = {}
    for name, client in stores.redis.items():
        traces = RedisTraces(client, user_id)
        gone |= {f"{name}/{kind}": count for kind, count in traces.count().items()}
        traces.erase()
        if name == EMBEDDED:
            traces.compact()
    for name, records in stores.records.items():
        gone |= {f"{name}/{table}": count for table, count in sql_count(records, user_id).items() if count}
        sql_erase(records, user_id)
    artifacts = _artifacts(store)
    whole = {a.path for a in artifacts}
    for path in _files(home):
        inside = path.relative_to(home).parts[0] in ("state", "registry") or any(p in whole for p in path.parents)
        if not inside and files.rows_in(path, user_id):
            gone[_place(path, home)] = gone.get(_place(path, home), 0) + files.rewrite_loose(path, user_id)
    # arrays of users before the histories that say which row is whose, and those last: as long as they hold a user, `_interrupted` finds them
    for artifact in sorted(artifacts, key=lambda a: (a.manifest.step == "histories", a.manifest.step not in files.POSITIONAL)):
        row = files.user_row(artifact, store, user_id)
        rows = {p: n for p in _files(artifact.path) if (n := files.rows_in(p, user_id))}
        if rows or row is not None:
            files.rewrite_artifact(artifact, user_id, row)
            for file, count in rows.items():
                gone[_place(file, home)] = gone.get(_place(file, home), 0) + count
            if row is not None:
                gone[f"{artifact.manifest.step}/{artifact.key}/arrays of users"] = 1
    return gone


def _sources(user_id: str, store: ArtifactStore) -> list[SourceFile]:
    """The source files of events and users behind every ETL that holds the user. They are the owner's own and are not touched."""
    found = []
    for artifact in _artifacts(store):
        named = {name: sha for name, sha in artifact.manifest.inputs.items() if len(sha) == 64 and not files.CATALOGUE_SOURCES.fullmatch(name.split(":")[0])}
        if named and artifact.manifest.step == "etl" and any(files.rows_in(p, user_id) for p in _files(artifact.path)):
            found += [SourceFile(name=name, sha256=sha) for name, sha in named.items()]
    return found


def _interrupted(store: ArtifactStore, erased: Erased) -> set[str]:
    """Users whose erasure was stopped before it reached the histories. Until theirs is ended, the rows of arrays of users are not whose they seem."""
    if not erased.unfinished():
        return set()
    found: set[str] = set()
    for artifact in _artifacts(store):
        if artifact.manifest.step == "histories":
            for path in sorted((artifact.path / "histories").glob("*.parquet")):
                ids = pq.read_table(path, columns=["user_id"])["user_id"]
                found |= {i for i in ids.filter(erased.mask(ids)).to_pylist() if erased.hash_of(i) in erased.unfinished()}
    return found


def _artifacts(store: ArtifactStore) -> list[Artifact]:
    paths = sorted((store.home / "artifacts").glob(f"*/*/{MANIFEST}"))
    found = [store.find(p.parent.parent.name, p.parent.name) for p in paths]
    return [a for a in found if a is not None]


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())


def _place(path: Path, home: Path, whole: bool = False) -> str:
    """A file as a person names it: the table of an artifact or a day of a log, not its parts."""
    inside = path.relative_to(home) if path.is_relative_to(home) else path
    if inside.parts[0] == "artifacts":
        inside = inside.relative_to("artifacts")
    return str(inside if whole or not path.name.startswith("part-") else inside.parent)


@contextmanager
def _open(home: Path, stores: StoresConfig) -> Iterator[_Stores]:
    """The stores that there are. Embedded servers are started if they hold data, and those that were started here are stopped again."""
    state = home / "state"
    with ExitStack() as stack:
        running = set(embedded.running(home)) if state.is_dir() else set()
        for name in ("redis", "milvus"):
            if (state / name).is_dir() and name not in running:
                stack.callback(embedded.stop, home, [name])
        redis_urls = {EMBEDDED: embedded.ensure_redis(home) if (state / "redis").is_dir() else "", "redis of stores.redis_url": stores.redis_url}
        milvus_uris = {"milvus": embedded.ensure_milvus(home) if (state / "milvus").is_dir() else "", "milvus of stores.milvus_uri": stores.milvus_uri}
        sqlite = state / "records.sqlite"
        sql_urls = {"sql": f"sqlite:///{sqlite}" if sqlite.is_file() else "", "sql of stores.sql_url": stores.sql_url}
        clients = {name: redis.Redis.from_url(url, decode_responses=True, socket_timeout=60) for name, url in redis_urls.items() if url}
        for client in clients.values():
            stack.callback(client.close)
            client.ping()
        vectors = {name: stack.enter_context(closing(VectorStore(uri))) for name, uri in milvus_uris.items() if uri}
        records = {name: stack.enter_context(closing(Records(url))) for name, url in sql_urls.items() if url}
        yield _Stores(clients, records, vectors)

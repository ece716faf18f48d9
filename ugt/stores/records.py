"""Records in SQL (SQLAlchemy): items, users, and the model versions that were materialised. SQLite file or PostgreSQL, by URL.

An item's row holds its semantic ID in the version materialised last, indexed from the first code on: items under (L1) or (L1, L2) are one range of the index.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from ugt.schema import Item, Record, UGTError, User

METADATA = sa.MetaData()
ITEMS = sa.Table(
    "items",
    METADATA,
    sa.Column("item_id", sa.String(128), primary_key=True),
    sa.Column("item_type", sa.String(16), nullable=False),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("year", sa.Integer),
    sa.Column("runtime_minutes", sa.Integer),
    sa.Column("genres", sa.Text, nullable=False),  # JSON list
    sa.Column("countries", sa.Text, nullable=False),  # JSON list
    sa.Column("rating", sa.Float),
    sa.Column("votes", sa.BigInteger),
    sa.Column("description", sa.Text),
    sa.Column("imdb_id", sa.String(16)),
    sa.Column("l1", sa.Integer),
    sa.Column("l2", sa.Integer),
    sa.Column("l3", sa.Integer),
    sa.Index("items_semantic_id", "l1", "l2", "l3"),
)
USERS = sa.Table(
    "users",
    METADATA,
    sa.Column("user_id", sa.String(128), primary_key=True),
    sa.Column("gender", sa.String(16)),
    sa.Column("age", sa.Integer),
    sa.Column("occupation", sa.String(64)),
)
VERSIONS = sa.Table(
    "versions",
    METADATA,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("version", sa.String(64), primary_key=True),
    sa.Column("materialized_at", sa.BigInteger, nullable=False),
    sa.Column("data_key", sa.String(64), nullable=False),
    sa.Column("figures", sa.Text, nullable=False),  # JSON
)


class VersionRecord(Record):
    """A model version whose items, users, features and vectors are in the stores."""

    name: str
    version: str
    materialized_at: int
    data_key: str
    figures: dict[str, Any]


class Records:
    """One engine and its tables. `url` is any SQLAlchemy URL; tables are made when missing."""

    def __init__(self, url: str):
        self.url = url
        try:
            self.engine = sa.create_engine(url, pool_pre_ping=True)
        except sa.exc.ArgumentError as error:
            raise UGTError("stores.sql_url is not a database address. Example: postgresql+psycopg://user:secret@host/ugt") from error
        if self.engine.dialect.name == "sqlite":
            sa.event.listen(self.engine, "connect", _sqlite_pragmas)
        try:
            METADATA.create_all(self.engine)
            _add_missing(self.engine, ITEMS)
        except sa.exc.OperationalError as error:
            shown = self.engine.url.render_as_string(hide_password=True)
            raise UGTError(f"the SQL database at {shown} does not open: {error.orig}. Start it or correct stores.sql_url.") from error

    def close(self) -> None:
        self.engine.dispose()

    def ping(self) -> None:
        """Raises sqlalchemy.exc.SQLAlchemyError if the database does not answer."""
        with self.engine.connect() as c:
            c.execute(sa.select(1))

    def replace_catalogue(self, items: Iterable[Item], users: Iterable[User], codes: Mapping[str, Sequence[int]] | None = None) -> None:
        """Items and users become exactly these, in one transaction: readers see the old tables or the new ones.

        `codes` are the semantic IDs by item_id; an item without one is under no prefix.
        """
        codes = codes or {}
        with self.engine.begin() as c:
            c.execute(ITEMS.delete())
            c.execute(USERS.delete())
            for rows in _batches(_item_row(i, codes.get(i.item_id)) for i in items):
                c.execute(ITEMS.insert(), rows)
            for rows in _batches(u.model_dump() for u in users):
                c.execute(USERS.insert(), rows)

    def catalogue(self) -> dict[str, tuple[str, str, list[str]]]:
        """item_id -> (item type, title, genres) of every item."""
        query = sa.select(ITEMS.c.item_id, ITEMS.c.item_type, ITEMS.c.title, ITEMS.c.genres)
        with self.engine.connect() as c:
            return {row[0]: (row[1], row[2], json.loads(row[3])) for row in c.execution_options(yield_per=5000).execute(query)}

    def items_by_prefix(self, l1: int, l2: int | None = None, limit: int = 1000) -> list[tuple[str, tuple[int, int, int]]]:
        """(item_id, semantic ID) of the items under (l1) or (l1, l2), in order of their semantic IDs, at most `limit`."""
        columns = ITEMS.c.l1, ITEMS.c.l2, ITEMS.c.l3
        query = sa.select(ITEMS.c.item_id, *columns).where(ITEMS.c.l1 == l1).order_by(*columns).limit(limit)
        if l2 is not None:
            query = query.where(ITEMS.c.l2 == l2)
        with self.engine.connect() as c:
            return [(item_id, (a, b, d)) for item_id, a, b, d in c.execute(query)]

    def put_version(self, name: str, version: str, data_key: str, figures: dict[str, Any]) -> None:
        """Say that a version's data is in the stores, replacing what was said of it before."""
        row = {"name": name, "version": version, "materialized_at": int(time.time()), "data_key": data_key, "figures": json.dumps(figures)}
        with self.engine.begin() as c:
            c.execute(VERSIONS.delete().where(VERSIONS.c.name == name, VERSIONS.c.version == version))
            c.execute(VERSIONS.insert(), row)

    def version(self, name: str, version: str) -> VersionRecord | None:
        with self.engine.connect() as c:
            row = c.execute(sa.select(VERSIONS).where(VERSIONS.c.name == name, VERSIONS.c.version == version)).mappings().first()
        return None if row is None else VersionRecord(**{**row, "figures": json.loads(row["figures"])})


def _add_missing(engine: sa.Engine, table: sa.Table) -> None:
    """Columns and indexes that a table of an older release lacks; its rows stay, empty in the new columns."""
    for column in table.columns:
        with contextlib.suppress(sa.exc.OperationalError, sa.exc.ProgrammingError):  # another process may add it at the same moment; looked at below
            if column.name not in _columns(engine, table):
                with engine.begin() as c:
                    c.execute(sa.DDL(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {column.type.compile(engine.dialect)}"))
    missing = sorted({column.name for column in table.columns} - _columns(engine, table))
    if missing:
        raise UGTError(f"the SQL table {table.name} has no column {', '.join(missing)}, and this user can't add it. Let stores.sql_url name one who can.")
    for index in table.indexes:
        with contextlib.suppress(sa.exc.OperationalError, sa.exc.ProgrammingError):  # made at the same moment, or slower look-ups without it
            index.create(engine, checkfirst=True)


def _columns(engine: sa.Engine, table: sa.Table) -> set[str]:
    return {column["name"] for column in sa.inspect(engine).get_columns(table.name)}


def _item_row(item: Item, codes: Sequence[int] | None) -> dict[str, Any]:
    l1, l2, l3 = (None, None, None) if codes is None else (int(code) for code in codes)
    return item.model_dump() | {"genres": json.dumps(item.genres), "countries": json.dumps(item.countries), "l1": l1, "l2": l2, "l3": l3}


def _batches(rows: Iterable[dict[str, Any]], size: int = 2000) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _sqlite_pragmas(connection: Any, _: Any) -> None:
    # readers do not wait for a writer, and a writer waits for another instead of failing
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=5000"):
        connection.execute(f"PRAGMA {pragma}").close()

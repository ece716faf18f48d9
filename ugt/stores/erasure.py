"""One user in the online stores: what Redis and SQL hold of them, and taking it away, from the servers' files too.

Choices: keys that are named by a user id (`USER_KINDS`) go whole; entries of the event stream go by their `user_id`; any other key goes, or loses the member,
if the id stands in its name or value as a word of its own, which is only looked for where the id is distinctive (`is_distinctive`): the number 1 stands
everywhere. Counts of events by item and facts about items stay: they name nobody.
Redis keeps what was deleted in its append-only file until that is rewritten, SQLite in free pages until it is vacuumed: both are done here. A deleted entry
of a stream keeps its bytes in the server's memory, which no command reads, until its block is freed or the server restarts.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from ugt.schema import UGTError
from ugt.stores.features import PREFIX, STREAM, USER_KINDS
from ugt.stores.records import METADATA, Records

COUNTS = ("popular", "totals:item", "facts")  # keys of items: no user in them
BATCH = 1000
REWRITE_SECONDS = 300.0


def is_distinctive(user_id: str) -> bool:
    """Whether the id can be searched as a word in any text: letters and digits together, four or more, or twelve characters of any kind but digits alone."""
    mixed = any(c.isdigit() for c in user_id) and any(c.isalpha() for c in user_id)
    return (mixed and len(user_id) >= 4) or (len(user_id) >= 12 and not user_id.isdigit())


def word_of(user_id: str) -> re.Pattern[bytes]:
    """Finds the id where no letter, digit or joining sign goes on before or after it."""
    return re.compile(rb"(?<![A-Za-z0-9_.@-])" + re.escape(user_id.encode()) + rb"(?![A-Za-z0-9_@-])")


class RedisTraces:
    """What a Redis server holds of one user. `client` is a synchronous client with `decode_responses=True`."""

    def __init__(self, client: Any, user_id: str):
        self.client, self.user_id = client, user_id
        self._word = word_of(user_id) if is_distinctive(user_id) else None

    def count(self) -> dict[str, int]:
        """Keys and stream entries about the user by kind, each looked for anew; kinds with none are left out."""
        found: dict[str, int] = {}
        for kind, _, _ in self._found():
            found[kind] = found.get(kind, 0) + 1
        return found

    def erase(self) -> int:
        """Remove all of it; returns how many keys, members and entries went."""
        whole: list[str] = []
        members: dict[str, list[str]] = {}
        for _, key, member in list(self._found()):
            whole += [key] if member is None else []
            members.setdefault(key, []).extend([] if member is None else [member])
        pipe = self.client.pipeline(transaction=False)  # with `appendfsync always`, a call at a time waits for the disk each time
        for key in whole:
            pipe.unlink(key)
        for key, names in members.items():
            kind = self.client.type(key) if names else ""
            if kind == "list":
                for name in names:
                    pipe.lrem(key, 0, name)
            elif kind:
                remove = getattr(pipe, {"stream": "xdel", "hash": "hdel", "set": "srem", "zset": "zrem"}[kind])
                for start in range(0, len(names), BATCH):
                    remove(key, *names[start : start + BATCH])
        return sum(pipe.execute())

    def compact(self) -> None:
        """Rewrite the append-only file, as commands, without what was deleted. Raises UGTError if the server does not end it."""
        self.client.config_set("aof-use-rdb-preamble", "no")  # a server started before that was its setting
        self.client.bgrewriteaof()
        end = time.monotonic() + REWRITE_SECONDS
        while time.monotonic() < end:
            info = self.client.info("persistence")
            if not info["aof_rewrite_in_progress"] and not info["aof_rewrite_scheduled"] and not info["rdb_bgsave_in_progress"]:
                if info["aof_last_bgrewrite_status"] == "ok":
                    return
                break
            time.sleep(0.05)
        raise UGTError("Redis did not rewrite its append-only file, which still holds what was deleted. Free some space on its disk, then run it again.")

    def _found(self) -> Iterator[tuple[str, str, str | None]]:
        """(kind, key, member or entry; None: the whole key)."""
        for key in self.client.scan_iter(match=PREFIX + "*", count=5000):
            kind, name = _kind_and_name(key)
            if kind in USER_KINDS:
                if name == self.user_id:
                    yield kind, key, None
            elif key == STREAM:
                for entry in self._entries(key):
                    yield "events (stream)", key, entry
            elif kind not in COUNTS and self._word is not None:
                yield from self._in_other(kind, key)

    def _entries(self, key: str) -> Iterator[str]:
        last = "-"
        while entries := self.client.xrange(key, min=last, count=BATCH):
            for entry, fields in entries:
                if fields.get("user_id") == self.user_id:
                    yield entry
                last = "(" + entry

    def _in_other(self, kind: str, key: str) -> Iterator[tuple[str, str, str | None]]:
        word = self._word
        assert word is not None
        if word.search(key.encode()):
            yield kind, key, None
            return
        form = self.client.type(key)
        if form == "string":
            if word.search((self.client.get(key) or "").encode()):
                yield kind, key, None
        elif form == "stream":
            yield from ((kind, key, entry) for entry in self._entries(key))
        elif form == "hash":
            yield from ((kind, key, k) for k, v in self.client.hscan_iter(key, count=BATCH) if word.search(f"{k}\n{v}".encode()))
        elif form == "list":
            yield from ((kind, key, m) for m in dict.fromkeys(self.client.lrange(key, 0, -1)) if word.search(m.encode()))
        elif form == "set":
            yield from ((kind, key, m) for m in self.client.sscan_iter(key, count=BATCH) if word.search(m.encode()))
        elif form == "zset":
            yield from ((kind, key, m) for m, _ in self.client.zscan_iter(key, count=BATCH) if word.search(m.encode()))


def _kind_and_name(key: str) -> tuple[str, str]:
    """`ugt:7:totals:user:mia` -> ("totals:user", "mia"), of any generation or none."""
    first, _, rest = key.removeprefix(PREFIX).partition(":")
    name = rest if first.isdigit() else key.removeprefix(PREFIX)
    for kind in (*USER_KINDS, *COUNTS):
        if name.startswith(kind + ":"):
            return kind, name.removeprefix(kind + ":")
    kind, _, name = name.partition(":")
    return kind, name


def raw_patterns(user_id: str) -> list[re.Pattern[bytes]]:
    """How a user of any id stands in a Redis append-only file: in the name of a key, and in an entry of the stream."""
    name = re.escape(user_id.encode())
    kinds = "|".join(USER_KINDS).encode()
    return [
        re.compile(re.escape(PREFIX.encode()) + rb"(?:\d+:)?(?:" + kinds + rb"):" + name + rb"\r\n"),
        re.compile(rb"user_id\r\n\$%d\r\n%s\r\n" % (len(user_id.encode()), name)),
    ]


def _tables() -> list[sa.Table]:
    return [table for table in METADATA.sorted_tables if "user_id" in table.c]


def sql_count(records: Records, user_id: str) -> dict[str, int]:
    """Rows about the user by table, tables without any included."""
    with records.engine.connect() as c:
        return {t.name: c.execute(sa.select(sa.func.count()).select_from(t).where(t.c.user_id == user_id)).scalar_one() for t in _tables()}


def sql_erase(records: Records, user_id: str) -> int:
    """Delete the user's rows in one transaction and, in SQLite, overwrite the pages that held them; returns how many rows went."""
    with records.engine.begin() as c:
        gone = sum(c.execute(t.delete().where(t.c.user_id == user_id)).rowcount for t in reversed(_tables()))
    if records.engine.dialect.name == "sqlite":
        with records.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
            c.exec_driver_sql("VACUUM")  # what earlier loads deleted lies in free pages
            c.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    return gone

"""Who was erased: salted hashes under UGT_HOME, so that rows of an erased user are dropped when a source or the event log is read again.

Choices: a keyed BLAKE2b of the user id, the key made once per home and kept in the same file, which only its owner may read. It names nobody, but who
holds the file can test an id against it: small numbers can be tried one after the other. An id that was erased stays erased; a person who comes back
needs another one.

An erasure that was begun and not ended stays `finished: null`; the next one ends it first (`data.erasure`).
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import ValidationError

from ugt.artifacts import write_text
from ugt.schema import Record, UGTError

FILE = "erasures.json"


class SourceFile(Record):
    """A source file whose rows named an erased user: its name and checksum as the ETL recorded them."""

    name: str
    sha256: str


class Erasure(Record):
    hash: str
    begun: float  # Unix seconds
    finished: float | None = None
    sources: list[SourceFile] = []


class _File(Record):
    salt: str
    erased: list[Erasure]


@dataclass
class Erased:
    """The erasures of one home."""

    path: Path
    salt: bytes
    entries: dict[str, Erasure] = field(default_factory=dict)  # by hash

    @classmethod
    def load(cls, home: Path) -> Erased:
        """Those recorded so far; none where nobody was erased. Raises UGTError if the record is damaged: rows must not come back by a broken file."""
        path = Path(home) / FILE
        try:
            stored = _File.model_validate_json(path.read_text())
            return cls(path, bytes.fromhex(stored.salt), {e.hash: e for e in stored.erased})
        except FileNotFoundError:
            return cls(path, secrets.token_bytes(32))
        except (ValidationError, ValueError) as error:
            raise UGTError(f"{path} is damaged: erased users would come back. Put back a copy of it, or erase them again after removing it.") from error

    def __len__(self) -> int:
        return len(self.entries)

    def hash_of(self, user_id: str) -> str:
        return hashlib.blake2b(user_id.encode(), key=self.salt, digest_size=16).hexdigest()

    def hashes(self, user_ids: Iterable[str]) -> list[str]:
        """Hash of each id, in order. About 1 microsecond each; give unique ids."""
        return [self.hash_of(user_id) for user_id in user_ids]

    def mask(self, user_ids: Sequence[str] | pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
        """Whether each id (null: no) was erased, bool [len(user_ids)]. Every distinct id is hashed once."""
        ids = user_ids if isinstance(user_ids, pa.Array | pa.ChunkedArray) else pa.array(user_ids, pa.string())
        if not self.entries or len(ids) == 0:
            return np.zeros(len(ids), bool)
        ids = ids.cast(pa.string())
        found = [user_id for user_id in pc.unique(ids).to_pylist() if user_id is not None and self.hash_of(user_id) in self.entries]
        return np.asarray(pc.is_in(ids, pa.array(found, pa.string())), dtype=bool)

    def drop(self, table: pa.Table, column: str = "user_id") -> pa.Table:
        """The rows of users who were not erased."""
        return table.filter(pa.array(~self.mask(table[column]))) if self.entries else table

    def begin(self, user_id: str, sources: Iterable[SourceFile] = ()) -> Erasure:
        """Record that a user is being erased, before anything is removed. Sources add to those recorded already."""
        name = self.hash_of(user_id)
        known = self.entries.get(name) or Erasure(hash=name, begun=time.time())
        both = {(s.name, s.sha256): s for s in (*known.sources, *sources)}
        self.entries[name] = known.model_copy(update={"finished": None, "sources": [both[k] for k in sorted(both)]})
        self._save()
        return self.entries[name]

    def finish(self, user_id: str) -> None:
        """Record that a fresh scan found the user nowhere."""
        name = self.hash_of(user_id)
        self.entries[name] = self.entries[name].model_copy(update={"finished": time.time()})
        self._save()

    def get(self, user_id: str) -> Erasure | None:
        return self.entries.get(self.hash_of(user_id))

    def unfinished(self) -> set[str]:
        """Hashes of erasures that were stopped before their end."""
        return {e.hash for e in self.entries.values() if e.finished is None}

    def _save(self) -> None:
        before = os.umask(0o077)  # the salt is nobody else's business
        try:
            write_text(self.path, _File(salt=self.salt.hex(), erased=list(self.entries.values())).model_dump_json(indent=1))
        finally:
            os.umask(before)

"""What was fetched into a folder: `checksums.json` beside the files, and parts of files that a later run goes on with.

A file is written as `<name>.partial` and renamed when it is whole and checked. `<name>.partial.version` holds what the origin calls this
version of the file (an ETag, or size and time): a part of another version is never continued.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

from ugt.artifacts import write_text
from ugt.schema import UGTError

RECORD = "checksums.json"


def digest(path: Path, algorithm: str = "sha256") -> str:
    """The checksum of a file, in hexadecimal."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, algorithm).hexdigest()


def progress_bar() -> Progress:
    """A bar of bytes for a person who watches; a log gets the line of each finished file only."""
    return Progress("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn(), transient=True, disable=not sys.stdout.isatty())


class Record:
    """`checksums.json` of a folder: by file name, its sha256, size in bytes and origin. Raises UGTError if it is there and is not such a file."""

    def __init__(self, folder: Path):
        self.path = folder / RECORD
        try:
            self.entries: dict[str, dict[str, Any]] = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
        except (OSError, ValueError) as error:
            raise UGTError(f"{self.path} cannot be read ({error}). Remove it: the files beside it are then checked and recorded anew.") from error
        if not isinstance(self.entries, dict) or not all(isinstance(e, dict) and "sha256" in e for e in self.entries.values()):
            raise UGTError(f"{self.path} is not a record of checksums. Remove it: the files beside it are then checked and recorded anew.")

    def add(self, name: str, **entry: Any) -> None:
        self.entries[name] = entry
        write_text(self.path, json.dumps(self.entries, indent=1, sort_keys=True) + "\n")

    def unchanged(self, path: Path) -> bool:
        """Whether the file is recorded. Raises UGTError if it is, and no longer holds what was recorded."""
        entry = self.entries.get(path.name)
        if entry is None:
            return False
        now = digest(path)
        if now != entry["sha256"]:
            raise UGTError(
                f"{path} is not the file that was fetched (SHA-256 is {now[:12]}..., was {entry['sha256'][:12]}...): changed or damaged since. "
                f"Remove it and run the command again."
            )
        return True


class Partial:
    """A file on its way to `path`."""

    def __init__(self, path: Path):
        self.target = path
        self.path = path.with_name(path.name + ".partial")
        self.version_path = path.with_name(path.name + ".partial.version")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def version(self) -> str | None:
        return self.version_path.read_text(encoding="utf-8") if self.version_path.exists() else None

    def begin(self, version: str | None) -> None:
        """Start anew, as a part of this version (None: the origin doesn't say)."""
        self.discard()
        if version:
            write_text(self.version_path, version)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.version_path.unlink(missing_ok=True)

    def finish(self) -> None:
        self.path.replace(self.target)
        self.version_path.unlink(missing_ok=True)

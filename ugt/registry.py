"""Versions of models on any pyarrow.fs URI or plain folder: written once, checked when read, promoted and rolled back.

Choices: `<root>/<name>/<version>/` holds a version's files and, written last, its manifest with the sha256 of every file. A
folder without a manifest isn't a version, so a killed publish leaves nothing that can be loaded. No operation rewrites a file that
a reader may hold: each file is written under a temporary name and moved, and a promotion appends a small record instead of changing one.
That needs no lock and no directory rename, which object stores don't have.

A version is `v<NNNN>-<hash8>`: NNNN counts up, hash8 is of the content. The same content published again is the same version.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pyarrow as pa
import pyarrow.fs as pafs
from pydantic import ValidationError

from ugt.schema import Record, UGTError

PRODUCTION = "production"
_MANIFEST = "version.json"
_PROMOTIONS = "promotions"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"v(\d{4,})-([0-9a-f]{8})")
_CHUNK = 1 << 20


class FileEntry(Record):
    size: int
    sha256: str


class VersionManifest(Record):
    """What a version says of itself. The card's `inputs` are its lineage: the artifact key of every step it came from."""

    name: str
    version: str
    content: str
    created: float
    card: dict[str, Any]
    files: dict[str, FileEntry]


class Promotion(Record):
    """One line of the history of what was in production."""

    action: Literal["promote", "rollback"]
    version: str
    time: float


class Registry:
    """Model versions under one URI. Instances hold no state: several processes may use one registry at once."""

    def __init__(self, uri: str | Path, cache_dir: Path | None = None, filesystem: pafs.FileSystem | None = None):
        """`uri` is a folder or a pyarrow.fs URI (`s3://bucket/models`); with `filesystem` it is a path inside that one.

        Versions of a remote registry are downloaded to `cache_dir` (default `$XDG_CACHE_HOME/ugt/registry`).
        """
        self.uri = str(uri)
        if filesystem is not None:
            self._fs, self._root = filesystem, self.uri.rstrip("/")
        elif "://" in self.uri:
            try:
                self._fs, root = pafs.FileSystem.from_uri(self.uri)
            except (pa.ArrowInvalid, OSError) as error:
                raise UGTError(
                    f"the registry address {self.uri} cannot be opened: {error}. Give a folder or an address like s3://bucket/models (registry_uri)."
                ) from error
            self._root = root.rstrip("/")
        else:
            self._fs, self._root = pafs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
        default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ugt" / "registry"
        self._cache = Path(cache_dir or default) / hashlib.sha256(f"{self._fs.type_name}:{self.uri}".encode()).hexdigest()[:16]

    @property
    def is_local(self) -> bool:
        return isinstance(self._fs, pafs.LocalFileSystem)

    # --- versions

    def names(self) -> list[str]:
        """Names that have at least one version."""
        return [n for n in self._folders(self._root) if self.versions(n)]

    def versions(self, name: str) -> list[str]:
        """Finished versions, oldest first; empty if there are none."""
        return [v for v in self._numbered(name) if self._exists(self._path(name, v, _MANIFEST))]

    def manifest(self, name: str, version: str = PRODUCTION) -> VersionManifest:
        """Card, lineage and files of a version. Raises UGTError if there is no such version or its manifest is damaged."""
        version = self._named(name, version)
        path = self._path(name, version, _MANIFEST)
        try:
            return VersionManifest.model_validate_json(self._read(path))
        except FileNotFoundError as error:
            known = ", ".join(self.versions(name)) or "none"
            raise UGTError(f"{name} has no version {version} in {self.uri}. Versions there: {known}.") from error
        except ValidationError as error:
            raise UGTError(
                f"{path} is damaged: it is not a version manifest. Promote another version of {name}, remove this one and publish it again."
            ) from error

    def card(self, name: str, version: str = PRODUCTION) -> dict[str, Any]:
        """A version as a person reads it: what was published with it, when, and whether it is in production."""
        manifest = self.manifest(name, version)
        sizes = {file: entry.size for file, entry in manifest.files.items()}
        return {
            "name": name,
            "version": manifest.version,
            "production": manifest.version == self.production(name),
            "created": datetime.fromtimestamp(manifest.created, UTC).isoformat(timespec="seconds"),
            **manifest.card,
            "files": sizes,
        }

    def publish(self, name: str, folder: Path, card: Mapping[str, Any] | None = None) -> str:
        """The version that holds exactly the files of `folder`, written now unless it is there already.

        Sub-folders included. The card of a version that is there already stays what it was.
        Raises UGTError for an empty folder, a bad name, or a full disk; nothing that can be loaded is left behind then.
        """
        if not _NAME.fullmatch(name):
            raise UGTError(f"{name!r} can't be a model's name: letters, digits, '.', '_' and '-' only, and a letter or digit first.")
        folder = Path(folder)
        files = {str(PurePosixPath(p.relative_to(folder))): _entry(p) for p in sorted(folder.rglob("*")) if p.is_file()}
        if not files:
            raise UGTError(f"nothing to publish as {name}: {folder} holds no file. Run the export step first.")
        if _MANIFEST in files:
            raise UGTError(f"{folder} holds a {_MANIFEST}: that name is the registry's own. Publish the exported folder, not a folder of the registry.")
        content = hashlib.sha256(json.dumps([[f, e.sha256] for f, e in sorted(files.items())]).encode()).hexdigest()
        for version in self._numbered(name):
            if version.endswith(content[:8]) and self._holds(name, version, content):
                return version
        numbered = self._numbered(name)
        number = 1 + max((int(v[1:].split("-")[0]) for v in numbered), default=0)
        version = f"v{number:04d}-{content[:8]}"
        if numbered and numbered[-1].endswith(content[:8]) and not self._exists(self._path(name, numbered[-1], _MANIFEST)):
            version = numbered[-1]  # a killed publish of this content: finish it
        manifest = VersionManifest(name=name, version=version, content=content, created=time.time(), card=dict(card or {}), files=files)
        try:
            for file in files:
                self._write_from(folder / file, self._path(name, version, file))
            # last: from here on the version exists
            self._write(self._path(name, version, _MANIFEST), manifest.model_dump_json(indent=1).encode())
        except OSError as error:
            if error.errno in (28, 122):  # ENOSPC, EDQUOT
                if not self._exists(self._path(name, version, _MANIFEST)):
                    self._fs.delete_dir(self._path(name, version))
                raise UGTError(f"no room left in the registry {self.uri} for {name}. Free some space there, then publish it again.") from error
            raise
        return version

    def resolve(self, name: str, version: str = PRODUCTION) -> Path:
        """The local folder of a version, every file checked against its sha256.

        A local registry's own folder is returned, which nobody may write to; a remote one is downloaded to the cache first.
        Raises UGTError naming the file that is missing or damaged.
        """
        manifest = self.manifest(name, version)
        if self.is_local:
            path = Path(self._path(name, manifest.version))
            _verify(path, manifest, f"Promote another version of {name} (ugt models rollback), or remove this folder and publish it again.")
            return path
        path = self._cache / name / manifest.version
        if path.is_dir():
            try:
                _verify(path, manifest, "")
                return path
            except UGTError:
                shutil.rmtree(path)  # a damaged copy; the registry still has the original
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        try:
            for file in manifest.files:
                (partial / file).parent.mkdir(parents=True, exist_ok=True)
                source = self._path(name, manifest.version, file)
                try:
                    pafs.copy_files(source, str(partial / file), source_filesystem=self._fs, destination_filesystem=pafs.LocalFileSystem())
                except FileNotFoundError as error:
                    raise UGTError(f"{file} of {name} {manifest.version} is missing in {self.uri}. Promote another version or publish it again.") from error
            _verify(partial, manifest, f"It came like this from {self.uri}. Promote another version of {name}, or remove this one and publish it again.")
            try:
                os.replace(partial, path)
            except OSError:
                if not path.is_dir():  # else another process was first, with the same bytes
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return path

    # --- production

    def promote(self, name: str, version: str) -> None:
        """Put a version into production. Promoting what is there already changes nothing. Raises UGTError for an unknown version."""
        if version == PRODUCTION:
            raise UGTError(f"say which version of {name} to promote: {', '.join(self.versions(name)) or 'there is none yet'}.")
        self.manifest(name, version)
        if self.production(name) != version:
            self._record(name, Promotion(action="promote", version=version, time=time.time()))

    def rollback(self, name: str) -> str:
        """Put the version that was in production before the current one back. Returns it. Raises UGTError if there was none."""
        stack = self._stack(name)
        if len(stack) < 2:
            known = ", ".join(self.versions(name)) or "none published"
            raise UGTError(f"{name} has no earlier production version to go back to in {self.uri}. Promote one by name: {known}.")
        self.manifest(name, stack[-2])
        self._record(name, Promotion(action="rollback", version=stack[-2], time=time.time()))
        return stack[-2]

    def production(self, name: str) -> str | None:
        """The version in production, or None if none was ever promoted."""
        stack = self._stack(name)
        return stack[-1] if stack else None

    def history(self, name: str) -> list[Promotion]:
        """Every promotion and rollback, oldest first."""
        selector = pafs.FileSelector(self._path(name, _PROMOTIONS), allow_not_found=True)
        # names start with a counter; two writers that took the same one are ordered by the rest, the same for every reader
        paths = sorted(i.path for i in self._fs.get_file_info(selector) if i.path.endswith(".json"))
        records = []
        for path in paths:
            try:
                records.append(Promotion.model_validate_json(self._read(path)))
            except ValidationError as error:
                raise UGTError(f"{path} is damaged: it is not a promotion record. Remove it, then promote the version you want.") from error
        return records

    # --- inside

    def _stack(self, name: str) -> list[str]:
        """Production versions that a rollback can return to, the current one last."""
        stack: list[str] = []
        for record in self.history(name):
            if record.action == "rollback":
                # two rollbacks at once name the same target: the second finds it on top already and undoes nothing more
                while stack and stack[-1] != record.version:
                    stack.pop()
            elif not stack or stack[-1] != record.version:
                stack.append(record.version)
        return stack

    def _record(self, name: str, record: Promotion) -> None:
        number = 1 + len(self.history(name))
        self._write(self._path(name, _PROMOTIONS, f"{number:06d}-{record.action}-{record.version}.json"), record.model_dump_json().encode())

    def _named(self, name: str, version: str) -> str:
        if not _NAME.fullmatch(name):
            raise UGTError(f"{name!r} can't be a model's name: letters, digits, '.', '_' and '-' only, and a letter or digit first.")
        if version == PRODUCTION:
            current = self.production(name)
            if current is None:
                known = ", ".join(self.versions(name)) or "none published"
                raise UGTError(f"no version of {name} is in production in {self.uri} (versions: {known}). Promote one: ugt models promote {name} VERSION.")
            return current
        if not _VERSION.fullmatch(version):
            raise UGTError(f"{version!r} is no version of {name}: versions look like v0001-1a2b3c4d. There are: {', '.join(self.versions(name)) or 'none'}.")
        return version

    def _holds(self, name: str, version: str, content: str) -> bool:
        path = self._path(name, version, _MANIFEST)
        return self._exists(path) and self.manifest(name, version).content == content

    def _numbered(self, name: str) -> list[str]:
        """Version folders in order, unfinished ones included, so that no number is given twice."""
        found = [f for f in self._folders(self._path(name)) if _VERSION.fullmatch(f)]
        return sorted(found, key=lambda v: (int(v[1:].split("-")[0]), v))

    def _folders(self, path: str) -> list[str]:
        infos = self._fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        return sorted(i.base_name for i in infos if i.type == pafs.FileType.Directory)

    def _path(self, *parts: str) -> str:
        return "/".join((self._root, *parts))

    def _exists(self, path: str) -> bool:
        return self._fs.get_file_info(path).type == pafs.FileType.File

    def _read(self, path: str) -> bytes:
        with self._fs.open_input_stream(path) as stream:
            return stream.read()

    def _write(self, path: str, data: bytes) -> None:
        aside = self._aside(path)
        try:
            with self._fs.open_output_stream(aside) as stream:
                stream.write(data)
            self._fs.move(aside, path)
        except BaseException:
            self._discard(aside)
            raise

    def _write_from(self, source: Path, path: str) -> None:
        aside = self._aside(path)
        try:
            with open(source, "rb") as reader, self._fs.open_output_stream(aside) as stream:
                while chunk := reader.read(_CHUNK):
                    stream.write(chunk)
            self._fs.move(aside, path)
        except BaseException:
            self._discard(aside)
            raise

    def _aside(self, path: str) -> str:
        parent, _, base = path.rpartition("/")
        self._fs.create_dir(parent, recursive=True)
        return f"{parent}/.{base}.{uuid.uuid4().hex}.tmp"

    def _discard(self, path: str) -> None:
        if self._exists(path):
            self._fs.delete_file(path)


def _entry(path: Path) -> FileEntry:
    with open(path, "rb") as f:
        return FileEntry(size=path.stat().st_size, sha256=hashlib.file_digest(f, "sha256").hexdigest())


def _verify(folder: Path, manifest: VersionManifest, way_out: str) -> None:
    for file, entry in manifest.files.items():
        try:
            found = _entry(folder / file)
        except FileNotFoundError as error:
            raise UGTError(f"{folder / file} is missing: {manifest.name} {manifest.version} is not whole. {way_out}") from error
        if found != entry:
            problem = f"{found.size} bytes instead of {entry.size}" if found.size != entry.size else "its sha256 is not the published one"
            raise UGTError(f"{folder / file} is damaged: {problem}. {way_out}")

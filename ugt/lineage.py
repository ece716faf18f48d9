"""From a model version, or any artifact, back through every step to the checksums of the source files.

Choices: a flat graph, because many steps read the same tables; a person reads it as a tree in which what was shown already is only named. An artifact that
was removed stays in it with its recorded key, and what the version's card still knows of the steps behind it. Training that began with the weights of
another version leads to that version too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from ugt.artifacts import MANIFEST, Artifact, ArtifactStore, Manifest
from ugt.registry import Registry
from ugt.schema import Record, UGTError

KEY, CHECKSUM = re.compile(r"[0-9a-f]{16}"), re.compile(r"[0-9a-f]{64}")
VERSION = re.compile(r"v\d{4,}-[0-9a-f]{8}")


class Node(Record):
    """A version ("version v0001-…"), an artifact ("step/key"), or a folder of weights from elsewhere.

    `state`: `gone` if it is not there, `damaged` if its files don't fit its manifest. `inputs` are ids of nodes; `sources` maps a source file to its SHA-256.
    """

    id: str
    state: Literal["whole", "gone", "damaged"]
    inputs: list[str] = []
    sources: dict[str, str] = {}
    settings: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    hashes: dict[str, str] = {}
    created: float | None = None
    seconds: float | None = None
    erased: dict[str, Any] | None = None


class Lineage(Record):
    root: str
    nodes: dict[str, Node]

    @property
    def sources(self) -> dict[str, str]:
        """Every source file and its SHA-256."""
        return {name: sha for node in self.nodes.values() for name, sha in sorted(node.sources.items())}

    @property
    def broken(self) -> list[str]:
        """Nodes that are not whole."""
        return [node.id for node in self.nodes.values() if node.state != "whole"]


def of(what: str, store: ArtifactStore, registry: Registry, name: str) -> Lineage:
    """The lineage of a version of the model `name`, of what is in `production`, or of an artifact by its key (`step/key`, or the beginning of a key).

    Raises UGTError if there is no such version or artifact.
    """
    nodes: dict[str, Node] = {}
    if what == "production" or VERSION.fullmatch(what):
        root = f"version {registry.manifest(name, what).version}"
    else:
        root = _artifact_named(what, store)
    todo = [root]
    while todo:
        at = todo.pop()
        if at not in nodes:
            nodes[at] = _node(at, store, registry, name)
            todo += nodes[at].inputs
    return Lineage(root=root, nodes=nodes)


def needed(store: ArtifactStore, registry: Registry, artifacts: Mapping[str, Artifact]) -> set[str]:
    """Ids of all that every version in the registry, whatever its name, and the artifacts given need."""
    found: set[str] = set()
    for name in registry.names():
        for version in registry.versions(name):
            found |= set(of(version, store, registry, name).nodes)
    for artifact in artifacts.values():
        found |= set(of(f"{artifact.manifest.step}/{artifact.key}", store, registry, "").nodes)
    return found


def lines(lineage: Lineage) -> Iterator[tuple[int, Node, bool]]:
    """(depth, node, whether it was shown above) in the order of a tree; what is behind a node that was shown above is not repeated."""
    shown: set[str] = set()
    todo = [(0, lineage.root)]
    while todo:
        depth, at = todo.pop()
        node = lineage.nodes[at]
        yield depth, node, at in shown
        if at not in shown:
            shown.add(at)
            todo += [(depth + 1, i) for i in reversed(_nearest(lineage, node))]


def _nearest(lineage: Lineage, node: Node) -> list[str]:
    """The inputs that no other input leads to: a version's card names every step, a tree shows each below the one that read it."""
    behind: set[str] = set()
    todo = [i for at in node.inputs for i in lineage.nodes[at].inputs]
    while todo:
        at = todo.pop()
        if at not in behind:
            behind.add(at)
            todo += lineage.nodes[at].inputs
    return [i for i in node.inputs if i not in behind]


def _node(at: str, store: ArtifactStore, registry: Registry, name: str) -> Node:
    if at.startswith("version "):
        try:
            manifest = registry.manifest(name, at.removeprefix("version "))
        except UGTError:
            return Node(id=at, state="gone")
        inputs = [f"{step}/{key}" for step, key in manifest.card.get("inputs", {}).items()]
        hashes = {file: entry.sha256 for file, entry in manifest.files.items()}
        return Node(id=at, state="whole", inputs=inputs, created=manifest.created, hashes=hashes, figures=manifest.card.get("figures", {}))
    step, _, key = at.partition("/")
    if not KEY.fullmatch(key):  # a folder of weights
        return Node(id=at, state="whole" if Path(at).is_dir() else "gone")
    manifest_of = _manifest(store.path(step, key) / MANIFEST)
    if manifest_of is None:
        return Node(id=at, state="damaged" if store.path(step, key).is_dir() else "gone")
    inputs = [f"{n}/{value}" for n, value in manifest_of.inputs.items() if KEY.fullmatch(value)]
    inputs += [_weights(folder, store, registry) for folder in _values(manifest_of.settings, "warm_start") if folder]
    sources = {n: value for n, value in manifest_of.inputs.items() if CHECKSUM.fullmatch(value)}
    return Node(
        id=at,
        state="whole" if store.find(step, key) else "damaged",
        inputs=inputs,
        sources=sources,
        settings=manifest_of.settings | {n: v for n, v in manifest_of.inputs.items() if not KEY.fullmatch(v) and not CHECKSUM.fullmatch(v)},
        figures=manifest_of.figures,
        hashes=manifest_of.hashes,
        created=manifest_of.created,
        seconds=manifest_of.seconds,
        erased=manifest_of.erased.model_dump() if manifest_of.erased else None,
    )


def _manifest(path: Path) -> Manifest | None:
    try:
        return Manifest.model_validate_json(path.read_text())
    except (OSError, ValidationError):
        return None


def _weights(folder: str, store: ArtifactStore, registry: Registry) -> str:
    """The version or artifact whose folder (or a folder in it) a training began with; the folder itself if it is neither."""
    for path in (Path(folder), *Path(folder).parents):
        if VERSION.fullmatch(path.name):
            return f"version {path.name}"
        if KEY.fullmatch(path.name) and path.parent.parent == store.home / "artifacts":
            return f"{path.parent.name}/{path.name}"
    return folder


def _values(settings: Mapping[str, Any], name: str) -> Iterator[str]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _values(value, name)
        elif key == name and isinstance(value, str):
            yield value


def _artifact_named(what: str, store: ArtifactStore) -> str:
    step, _, key = what.rpartition("/")
    found = sorted(p for p in (store.home / "artifacts").glob(f"{step or '*'}/{key}*") if KEY.fullmatch(p.name)) if re.fullmatch(r"[0-9a-f]{4,16}", key) else []
    if len(found) == 1:
        return f"{found[0].parent.name}/{found[0].name}"
    if found:
        raise UGTError(f"{what} names {len(found)} artifacts: {', '.join(f'{p.parent.name}/{p.name}' for p in found[:5])}. Give more of the key.")
    raise UGTError(f"there is no version or artifact {what} in {store.home}. Versions: ugt models list. Artifacts: ugt data catalog.")

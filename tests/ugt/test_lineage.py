"""From a version back to the checksums of the source files, and a break in the chain is shown with its recorded key."""

from __future__ import annotations

import json
import shutil

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from ray_app.cli import app
from ugt import lineage
from ugt.artifacts import ArtifactStore
from ugt.registry import Registry
from ugt.schema import UGTError

SOURCES = {"ratings:ratings.csv": "a" * 64, "movies:movies.csv": "b" * 64}


class Training(BaseModel):
    warm_start: str = ""


def step(store, name, inputs, settings=()):
    def body(out, work):
        (out / "data.txt").write_text(name)
        return {"rows": 1}

    return store.run(name, body, version=1, inputs=inputs, settings=settings)


def publish(home, store, registry, warm_start=""):
    """source files -> etl -> histories -> ugt_stage1 -> export -> a version, as the pipeline records it."""
    etl = step(store, "etl", {**SOURCES, "kind": "sequences"})
    histories = step(store, "histories", {"etl": etl.key})
    stage = step(store, "ugt_stage1", {"etl": etl.key, "histories": histories.key}, [Training(warm_start=warm_start)])
    export = step(store, "export", {"etl": etl.key, "histories": histories.key, "ugt_stage1": stage.key})
    made = {"etl": etl, "histories": histories, "ugt_stage1": stage, "export": export}
    folder = home / f"out-{export.key}"
    folder.mkdir()
    (folder / "model.onnx").write_text(export.key)
    version = registry.publish("ugt", folder, {"inputs": {name: artifact.key for name, artifact in made.items()}})
    return version, made


@pytest.fixture
def world(tmp_path):
    store, registry = ArtifactStore(tmp_path), Registry(tmp_path / "registry")
    version, made = publish(tmp_path, store, registry)
    registry.promote("ugt", version)
    return tmp_path, store, registry, version, made


def test_production_leads_to_every_source_file(world):
    _, store, registry, version, made = world
    found = lineage.of("production", store, registry, "ugt")
    assert found.root == f"version {version}"
    assert found.sources == SOURCES
    assert set(found.nodes) == {f"version {version}", *(f"{name}/{a.key}" for name, a in made.items())}
    assert found.broken == []
    etl = found.nodes[f"etl/{made['etl'].key}"]
    assert etl.settings == {"kind": "sequences"}
    assert etl.hashes == made["etl"].manifest.hashes


def test_the_tree_shows_each_step_below_the_one_that_read_it(world):
    _, store, registry, version, _ = world
    found = lineage.of(version, store, registry, "ugt")
    shown = [(depth, node.id.split("/")[0]) for depth, node, _ in lineage.lines(found)]
    assert shown == [(0, f"version {version}"), (1, "export"), (2, "ugt_stage1"), (3, "histories"), (4, "etl")]


def test_an_artifact_is_found_by_the_beginning_of_its_key(world):
    _, store, registry, _, made = world
    key = made["histories"].key
    for what in (key, key[:8], f"histories/{key}"):
        assert lineage.of(what, store, registry, "ugt").root == f"histories/{key}"
    with pytest.raises(UGTError, match="no version or artifact ffff"):
        lineage.of("ffff", store, registry, "ugt")
    with pytest.raises(UGTError, match="has no version"):
        lineage.of("v0009-00000000", store, registry, "ugt")


def test_a_removed_artifact_is_shown_with_its_key_and_what_the_card_still_knows(world):
    _, store, registry, version, made = world
    shutil.rmtree(made["histories"].path)
    (made["export"].path / "data.txt").write_text("cut")
    found = lineage.of(version, store, registry, "ugt")
    assert set(found.broken) == {f"histories/{made['histories'].key}", f"export/{made['export'].key}"}
    assert found.nodes[f"histories/{made['histories'].key}"].state == "gone"
    assert found.nodes[f"export/{made['export'].key}"].state == "damaged"
    assert found.sources == SOURCES  # the etl is in the card, and is whole


def test_training_that_began_with_a_version_leads_to_that_version(world):
    home, store, registry, version, made = world
    second, _ = publish(home, store, registry, warm_start=str(home / "registry/ugt" / version / "weights"))
    found = lineage.of(second, store, registry, "ugt")
    assert second != version
    assert f"version {version}" in found.nodes
    assert f"ugt_stage1/{made['ugt_stage1'].key}" in found.nodes


def test_the_command_draws_the_tree_and_writes_the_graph(world, tmp_path, monkeypatch):
    home = world[0]
    monkeypatch.setenv("UGT_HOME", str(home))
    out = tmp_path / "lineage.json"
    done = CliRunner().invoke(app, ["data", "lineage", "production", "--json", str(out)])
    assert done.exit_code == 0, done.output
    assert f"ratings:ratings.csv  sha256 {'a' * 64}" in done.output
    assert json.loads(out.read_text())["sources"] == SOURCES

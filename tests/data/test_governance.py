"""The catalogue says what is there without reading rows, and retention never takes what a version or the newest run needs."""

from __future__ import annotations

import json
import os
import time

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from data import governance
from ray_app.cli import app
from ugt.artifacts import EVENTS, MANIFEST, USERS, ArtifactStore, write_table
from ugt.registry import Registry
from ugt.schema import UGTError
from ugt.settings import RetentionConfig

DAY = 86400.0


def make(store, step, inputs=None, size=10, version=1):
    """An artifact with a table of users and a text, as a step would write it."""

    def body(out, work):
        write_table(
            pa.table({"user_id": [f"u{i}" for i in range(size)], "gender": [None] * size, "age": [1] * size, "occupation": [None] * size}, USERS), out / "users"
        )
        (out / "note.txt").write_text(f"{step} {version}")
        return {"users": size}

    return store.run(step, body, version=version, inputs=inputs or {}, settings=[RetentionConfig(days=version)])


def age(artifact, days):
    """Make an artifact `days` older than it is, as its manifest tells it."""
    manifest = artifact.manifest.model_copy(update={"created": artifact.manifest.created - days * DAY})
    (artifact.path / MANIFEST).write_text(manifest.model_dump_json())


@pytest.fixture
def home(tmp_path):
    """Two runs of etl and histories; the older one is behind the version in production."""
    store, registry = ArtifactStore(tmp_path), Registry(tmp_path / "registry")
    etl = make(store, "etl", {"ratings:ratings.csv": "a" * 64}, version=1)
    histories = make(store, "histories", {"etl": etl.key})
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "card.json").write_text("{}")
    version = registry.publish("ugt", folder, {"inputs": {"etl": etl.key, "histories": histories.key}})
    registry.promote("ugt", version)
    orphan = make(store, "etl", {"ratings:ratings.csv": "b" * 64}, version=2)
    newest = make(store, "etl", {"ratings:ratings.csv": "c" * 64}, version=3)
    for artifact in (etl, histories, orphan, newest):
        age(artifact, 200 - artifact.manifest.version)
    for day in ("2020-01-01", time.strftime("%Y-%m-%d", time.gmtime())):
        log = tmp_path / "event_log" / f"date={day}"
        log.mkdir(parents=True)
        write_table(EVENTS.empty_table(), log)
    return tmp_path


def test_the_catalogue_counts_what_the_files_hold(home):
    found = {(d.name, d.sources.get("ratings:ratings.csv", "-")[0]): d for d in governance.catalogue(home)}
    assert set(found) == {("etl", "a"), ("etl", "b"), ("etl", "c"), ("histories", "-"), ("event_log", "-")}
    etl = found["etl", "a"]
    folder = home / "artifacts/etl" / etl.key
    assert etl.tables["users"].rows == etl.rows == 10
    assert etl.tables["users"].columns == {"user_id": "string", "gender": "string", "age": "int32", "occupation": "string"}
    assert etl.bytes == sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    assert etl.settings == {"RetentionConfig": {"days": 1.0, "event_log_days": 365.0}}
    assert found["event_log", "-"].days[0] == "date=2020-01-01"
    assert found["event_log", "-"].rows == 0
    assert found["etl", "a"].hash != found["etl", "b"].hash  # their notes differ


def test_the_catalogue_is_narrowed_by_step_and_key(home):
    key = governance.catalogue(home, step="histories")[0].key
    assert [d.name for d in governance.catalogue(home, key=key[:6])] == ["histories"]
    assert governance.catalogue(home, step="etl", key=key) == []


def test_one_changed_byte_is_named_by_verify_and_by_nothing_else(home):
    assert governance.verify(home)["bad"] == {}
    path = home / "artifacts/etl" / governance.catalogue(home, step="etl")[0].key / "note.txt"
    os.chmod(path, 0o600)
    path.write_text("etl X")  # as long as before
    assert governance.catalogue(home, step="etl")[0].whole
    report = governance.verify(home)
    assert report["bad"] == {str(path): "its SHA-256 is not the one of the manifest"}


def test_a_manifest_from_before_checksums_still_loads(home):
    path = home / "artifacts/etl" / governance.catalogue(home, step="etl")[0].key / MANIFEST
    old = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("hashes", "created", "erased")}
    path.write_text(json.dumps(old))
    dataset = next(d for d in governance.catalogue(home, step="etl") if d.key == old["key"])
    assert dataset.hash is None
    assert dataset.created == pytest.approx(path.stat().st_mtime)
    assert governance.verify(home)["by_size"] == 2
    assert ArtifactStore(home).find("etl", old["key"]) is not None


def test_retention_shows_first_and_keeps_what_a_version_or_the_newest_run_needs(home):
    store, registry, config = ArtifactStore(home), Registry(home / "registry"), RetentionConfig(days=90, event_log_days=365)
    by_source = {d.sources.get("ratings:ratings.csv", "")[:1]: d.key for d in governance.catalogue(home, step="etl")}
    expected = sorted([f"artifacts/etl/{by_source['b']}", "event_log/date=2020-01-01"])
    shown = governance.prune(home, registry, config, delete=False)
    assert sorted(r["what"] for r in shown["removed"]) == expected
    assert store.find("etl", by_source["b"]) is not None
    done = governance.prune(home, registry, config, delete=True)
    assert (sorted(r["what"] for r in done["removed"]), done["bytes"]) == (expected, shown["bytes"])
    assert store.find("etl", by_source["b"]) is None
    assert store.find("etl", by_source["a"]) is not None  # behind the version in production
    assert store.find("etl", by_source["c"]) is not None  # the newest
    assert [p.name for p in (home / "artifacts/etl").iterdir() if p.suffix] == []
    assert len(list((home / "event_log").glob("date=*"))) == 1
    assert governance.prune(home, registry, config, delete=True)["removed"] == []


def test_a_day_of_the_event_log_that_something_kept_was_made_from_stays(home):
    from ugt.artifacts import file_hash

    part = next((home / "event_log/date=2020-01-01").glob("*.parquet"))
    make(ArtifactStore(home), "etl", {"events:part-00000.parquet": file_hash(part)}, version=4)
    report = governance.prune(home, Registry(home / "registry"), RetentionConfig(), delete=True)
    assert "event_log/date=2020-01-01" in report["kept_though_old"]
    assert part.is_file()


def test_nothing_is_pruned_while_a_step_is_made(home):
    store, refused = ArtifactStore(home), []

    def body(out, work):
        try:
            governance.prune(home, Registry(home / "registry"), RetentionConfig(), delete=True)
        except UGTError as error:
            refused.append(str(error))
        return {}

    store.run("text", body, version=1, inputs={})
    assert len(refused) == 1
    assert "a step is being made" in refused[0]


def test_a_folder_that_is_no_home_is_named(tmp_path):
    with pytest.raises(UGTError, match="no data of UGT"):
        governance.catalogue(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_the_command_writes_what_it_shows(home, tmp_path, monkeypatch):
    monkeypatch.setenv("UGT_HOME", str(home))
    out = tmp_path / "catalog.json"
    done = CliRunner().invoke(app, ["data", "catalog", "--verify", "--json", str(out)])
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text())
    assert len(report["datasets"]) == 5
    assert report["verify"]["bad"] == {}
    assert "5 data sets" in done.output

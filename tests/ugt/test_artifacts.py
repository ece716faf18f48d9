"""A finished folder is whole, whenever its maker was killed; two makers at once do the work once."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from ugt.artifacts import MANIFEST, ArtifactStore
from ugt.settings import EtlConfig


def make(out: Path, work: Path) -> dict[str, int]:
    (out / "table").mkdir()
    (out / "table/part").write_text("rows")
    (work / "checkpoint").write_text("epoch 1")
    return {"rows": 1}


def store_run(home: Path, function=make, **changes):
    return ArtifactStore(home).run("step", function, **({"version": 1, "inputs": {"etl": "abc"}, "settings": [EtlConfig()]} | changes))


def killed_in(home: Path, function) -> None:
    """Run the step in a process that dies by SIGKILL inside `function`."""
    child = os.fork()
    if child == 0:
        try:
            store_run(home, function)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_kill_inside_a_step_leaves_nothing_that_counts_and_the_checkpoint(tmp_path: Path) -> None:
    def half(out: Path, work: Path) -> dict[str, int]:
        (out / "half").write_text("x")
        (work / "checkpoint").write_text("epoch 3")
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    killed_in(tmp_path, half)
    (left,) = (tmp_path / "artifacts/step").iterdir()
    assert left.suffix == ".partial"
    seen: list[str] = []

    def resumed(out: Path, work: Path) -> dict[str, int]:
        seen.append((work / "checkpoint").read_text())
        assert not list(out.iterdir())  # what the killed run had begun is gone
        return make(out, work)

    made = store_run(tmp_path, resumed)
    assert seen == ["epoch 3"]
    assert not made.skipped
    assert set(made.manifest.files) == {"table/part"}
    assert [p.name for p in (tmp_path / "artifacts/step").iterdir()] == [made.key]


def test_a_kill_between_manifest_and_rename_or_after_it_is_harmless(tmp_path: Path) -> None:
    made = store_run(tmp_path)
    partial = made.path.with_name(made.key + ".partial")
    made.path.rename(partial)
    assert not store_run(tmp_path).skipped  # not renamed: made again
    assert not partial.exists()
    (tmp_path / "work/step" / made.key).mkdir()  # renamed, checkpoints not yet removed
    assert store_run(tmp_path).skipped


@pytest.mark.parametrize("damage", ["no manifest", "half a manifest", "a file short", "a file gone"])
def test_what_is_not_whole_does_not_count(tmp_path: Path, damage: str) -> None:
    path = store_run(tmp_path).path
    if damage == "no manifest":
        (path / MANIFEST).unlink()
    elif damage == "half a manifest":
        (path / MANIFEST).write_text((path / MANIFEST).read_text()[:40])
    elif damage == "a file short":
        (path / "table/part").write_text("ro")
    else:
        shutil.rmtree(path / "table")
    again = store_run(tmp_path)
    assert not again.skipped
    assert (again.path / "table/part").read_text() == "rows"


def test_the_key_is_version_inputs_and_settings(tmp_path: Path) -> None:
    keys = [
        store_run(tmp_path, **changes).key
        for changes in ({}, {"version": 2}, {"inputs": {"etl": "abd"}}, {"settings": [EtlConfig(blocks=9)]}, {"settings": []}, {"inputs": {"text": "abc"}})
    ]
    assert len(set(keys)) == len(keys)


def test_two_at_once_do_the_work_once(tmp_path: Path) -> None:
    runs: list[float] = []

    def slow(out: Path, work: Path) -> dict[str, int]:
        runs.append(time.monotonic())
        time.sleep(0.3)
        return make(out, work)

    results = []
    threads = [threading.Thread(target=lambda: results.append(store_run(tmp_path, slow))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs) == 1
    assert sorted(r.skipped for r in results) == [False, True, True]

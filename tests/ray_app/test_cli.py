"""The command line: every command answers --help, and errors are one sentence with a way out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ray_app.cli import app
from ray_app.errors import plain
from ugt.schema import UGTError

ROOT = Path(__file__).resolve().parents[2]


def ugt(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ray_app", *arguments], cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=120)


def commands() -> list[list[str]]:
    found = [[c.name or c.callback.__name__] for c in app.registered_commands]
    for group in app.registered_groups:
        found += [[group.name, c.name or c.callback.__name__] for c in group.typer_instance.registered_commands]
    return found


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_explains_itself(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "to be implemented" not in result.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("demo", "--source", "nowhere"), "source"),
        (("demo", "--config", "missing.yaml"), "missing.yaml"),
        (("data", "download", "nothing", "--to", "/tmp"), "nothing"),
        (("job", "list", "--address", "http://127.0.0.1:9"), "ugt cluster up"),
    ],
)
def test_a_mistake_is_one_sentence_with_a_way_out(arguments: tuple[str, ...], expected: str) -> None:
    done = ugt(*arguments)
    assert done.returncode == 1
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_environment_variable_is_named() -> None:
    done = ugt("models", "list", UGT_SERVE__PORT="many")
    assert done.returncode == 1
    assert "serve.port" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    from ugt.artifacts import ArtifactStore

    def make(out: Path, work: Path) -> dict[str, int]:
        (out / "half").write_text("x")
        with open("/dev/full", "w") as f:  # the kernel's own "No space left on device"
            f.write("x" * 100_000)
        return {}

    store = ArtifactStore(tmp_path)
    with pytest.raises(UGTError, match="disk"):
        store.run("etl", make, version=1, inputs={})
    assert not list((tmp_path / "artifacts" / "etl").iterdir())


def test_a_damaged_artifact_is_made_again(tmp_path: Path) -> None:
    from ugt.artifacts import ArtifactStore

    store = ArtifactStore(tmp_path)

    def make(out: Path, work: Path) -> dict[str, int]:
        (out / "file").write_text("whole")
        return {"n": 1}

    first = store.run("etl", make, version=1, inputs={})
    assert store.run("etl", make, version=1, inputs={}).skipped
    (first.path / "file").write_text("cut")
    again = store.run("etl", make, version=1, inputs={})
    assert not again.skipped
    assert (again.path / "file").read_text() == "whole"


def test_the_plain_error_is_found_below_rays_wrappers() -> None:
    wrapped = RuntimeError("wrapped")
    wrapped.__cause__ = UGTError("the reason")
    assert plain(wrapped) == "the reason"
    assert plain(KeyError("ours")) is None

"""The registry on a local folder and on a remote file system: write once, integrity, promotion, two writers at once."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import fsspec
import pyarrow.fs as pafs
import pytest

import ugt.registry
from ugt.registry import Registry
from ugt.schema import UGTError


def make_folder(path: Path, text: str) -> Path:
    (path / "graphs").mkdir(parents=True, exist_ok=True)
    (path / "tables.npz").write_text(text)
    (path / "graphs" / "decode.onnx").write_text(text * 3)
    return path


@pytest.fixture(params=["local", "remote"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    if request.param == "local":
        return Registry(tmp_path / "registry")
    memory = fsspec.get_filesystem_class("memory")(skip_instance_cache=True)
    memory.store, memory.pseudo_dirs = {}, [""]
    return Registry("/models", cache_dir=tmp_path / "cache", filesystem=pafs.PyFileSystem(pafs.FSSpecHandler(memory)))


def test_a_published_version_comes_back_as_it_was(registry: Registry, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "out", "one")
    version = registry.publish("ugt", folder, {"recall@10": 0.2, "inputs": {"etl": "7f3a"}})
    assert version.startswith("v0001-")
    path = registry.resolve("ugt", version)
    assert (path / "graphs" / "decode.onnx").read_text() == "oneoneone"
    assert (path / "tables.npz").read_text() == "one"
    card = registry.card("ugt", version)
    assert (card["recall@10"], card["inputs"], card["production"]) == (0.2, {"etl": "7f3a"}, False)
    assert card["files"] == {"graphs/decode.onnx": 9, "tables.npz": 3}
    assert registry.names() == ["ugt"]


def test_the_same_content_is_the_same_version(registry: Registry, tmp_path: Path) -> None:
    first = registry.publish("ugt", make_folder(tmp_path / "a", "one"))
    second = registry.publish("ugt", make_folder(tmp_path / "b", "two"))
    assert registry.publish("ugt", make_folder(tmp_path / "c", "one")) == first
    assert registry.versions("ugt") == [first, second]
    assert second.startswith("v0002-")


def test_promote_and_roll_back(registry: Registry, tmp_path: Path) -> None:
    one, two, three = (registry.publish("ugt", make_folder(tmp_path / t, t)) for t in ("one", "two", "three"))
    with pytest.raises(UGTError, match="no version of ugt is in production"):
        registry.resolve("ugt")
    for version in (one, two, two, three):
        registry.promote("ugt", version)
    assert registry.rollback("ugt") == two
    assert registry.rollback("ugt") == one
    assert registry.production("ugt") == one
    with pytest.raises(UGTError, match="no earlier production version"):
        registry.rollback("ugt")
    registry.promote("ugt", three)
    assert (registry.resolve("ugt", "production") / "tables.npz").read_text() == "three"
    assert registry.rollback("ugt") == one
    assert [h.action for h in registry.history("ugt")] == ["promote"] * 3 + ["rollback"] * 2 + ["promote", "rollback"]


def test_unknown_names_and_versions_are_said(registry: Registry, tmp_path: Path) -> None:
    version = registry.publish("ugt", make_folder(tmp_path / "a", "one"))
    with pytest.raises(UGTError, match=f"no version v0009-00000000 .*{version}"):
        registry.promote("ugt", "v0009-00000000")
    with pytest.raises(UGTError, match="versions look like"):
        registry.resolve("ugt", "../../etc")
    with pytest.raises(UGTError, match="can't be a model's name"):
        registry.publish("../x", tmp_path / "a")
    with pytest.raises(UGTError, match="holds no file"):
        registry.publish("ugt", tmp_path / "nothing")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    registry = Registry(tmp_path / "registry")
    version = registry.publish("ugt", make_folder(tmp_path / "a", "one"))
    file = tmp_path / "registry" / "ugt" / version / "graphs" / "decode.onnx"
    {"truncated": lambda: file.write_text("on"), "flipped": lambda: file.write_text("oneonfone"), "missing": file.unlink}[damage]()
    with pytest.raises(UGTError, match=r"decode\.onnx is (damaged|missing)"):
        registry.resolve("ugt", version)


def test_a_damaged_download_is_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    remote = pafs.SubTreeFileSystem(str(tmp_path / "bucket"), pafs.LocalFileSystem())
    registry = Registry("models", cache_dir=tmp_path / "cache", filesystem=remote)
    version = registry.publish("ugt", make_folder(tmp_path / "a", "one"))
    path = registry.resolve("ugt", version)
    assert tmp_path / "cache" in path.parents
    (path / "tables.npz").write_text("broken")
    assert (registry.resolve("ugt", version) / "tables.npz").read_text() == "one"
    (tmp_path / "bucket" / "models" / "ugt" / version / "tables.npz").write_text("broken")
    assert registry.resolve("ugt", version) == path  # the copy is whole
    with pytest.raises(UGTError, match=r"tables\.npz is damaged"):
        Registry("models", cache_dir=tmp_path / "other", filesystem=remote).resolve("ugt", version)
    assert not list((tmp_path / "other").rglob("*.partial"))


def test_a_killed_publish_leaves_no_version_and_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(tmp_path / "registry")
    folder = make_folder(tmp_path / "a", "one")

    def killed(self: Registry, path: str, data: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Registry, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        registry.publish("ugt", folder)
    assert registry.versions("ugt") == []
    monkeypatch.undo()
    version = registry.publish("ugt", folder)
    # the same name as without the kill, so that a second run reports the same version
    assert version == Registry(tmp_path / "undisturbed").publish("ugt", folder)
    assert registry.versions("ugt") == [version]


def test_a_full_disk_is_one_message_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(tmp_path / "registry")

    def full(self: Registry, path: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ugt.registry.Registry, "_write", full)
    with pytest.raises(UGTError, match="no room left"):
        registry.publish("ugt", make_folder(tmp_path / "a", "one"))
    assert not [p for p in (tmp_path / "registry").rglob("*") if p.is_file()]


def _publish(args: tuple[Path, Path]) -> str:
    return Registry(args[0]).publish("ugt", args[1])


def test_publishers_at_once_do_not_corrupt(tmp_path: Path) -> None:
    folders = [make_folder(tmp_path / str(i), f"text{i % 3}" * 50_000) for i in range(12)]
    with multiprocessing.get_context("fork").Pool(4) as pool:
        versions = pool.map(_publish, [(tmp_path / "registry", f) for f in folders], chunksize=1)
    registry = Registry(tmp_path / "registry")
    assert set(versions) <= set(registry.versions("ugt"))
    for folder, version in zip(folders, versions, strict=True):
        assert (registry.resolve("ugt", version) / "tables.npz").read_text() == (folder / "tables.npz").read_text()
    assert not list((tmp_path / "registry").rglob("*.tmp"))

"""Bad input at the command line: one message that names the file, field or port and the way out, exit code 1, and nothing half-written.

What Ray need not be asked about is answered before it is started. The same over HTTP: tests/serve/test_graph.py.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gzip
import http.server
import io
import os
import random
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import sqlalchemy as sa

from data import download
from data.fetched import Partial
from ray_app import cli, cluster, head
from ray_app.errors import plain
from ugt.artifacts import new_matrix, write_text

ROOT = Path(__file__).resolve().parents[2]
MOVIES = "movieId,title,genres\n"
RATINGS = "userId,movieId,rating,timestamp\n"

Ugt = Callable[..., str]


@pytest.fixture
def ugt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Ugt:
    """Run a command that must fail, as `ugt` does; returns its message."""
    monkeypatch.setenv("UGT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("UGT_DATA_DIR", raising=False)

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["ugt", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        error = capsys.readouterr().err
        assert exit.value.code == 1, error
        assert error.startswith("error ")
        assert error.count("\n") == 1
        assert "Traceback" not in error
        return error

    return run


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object) -> None:
        pytest.fail("Ray was started")

    monkeypatch.setattr(cluster, "connected", started)


def files(folder: Path, **texts: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


def test_a_missing_folder_is_answered_within_seconds(tmp_path: Path) -> None:
    start = time.monotonic()
    command = [sys.executable, "-m", "ray_app", "demo", "--source", "movielens", "--data-dir", str(tmp_path / "nowhere")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"UGT_HOME": str(tmp_path)}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"there is no folder {tmp_path / 'nowhere'}" in done.stderr
    assert "--data-dir" in done.stderr
    assert time.monotonic() - start < 15  # 2 s on an idle machine; a local Ray alone would take longer than that on a busy one


@pytest.mark.parametrize("command", [("demo",), ("data", "etl"), ("train", "ugt"), ("evaluate",), ("tune", "--out", "/dev/null")], ids=" ".join)
def test_other_columns_are_named_before_ray_is_started(ugt: Ugt, no_ray: None, tmp_path: Path, command: tuple[str, ...]) -> None:
    folder = files(tmp_path / "in", movies="a,b\n1,2\n", ratings=RATINGS)
    error = ugt(*command, "--source", "movielens", "--data-dir", folder)
    assert "movies.csv has other columns: movieId, title, genres missing, found a, b" in error
    assert str(folder) in error


@pytest.mark.parametrize(("source", "wanted"), [("movielens", "movies.csv"), ("imdb", "title.basics"), ("amazon", ".txt.gz"), ("sequences", "sequences.txt")])
def test_an_empty_folder_is_told_what_belongs_there(ugt: Ugt, no_ray: None, tmp_path: Path, source: str, wanted: str) -> None:
    assert wanted in ugt("data", "etl", "--source", source, "--data-dir", files(tmp_path / "in"))


def test_an_empty_file_and_one_cut_off_in_its_header_are_named(ugt: Ugt, no_ray: None, tmp_path: Path) -> None:
    folder = files(tmp_path / "in", movies="", ratings=RATINGS)
    assert "movies.csv has other columns" in ugt("data", "etl", "--source", "movielens", "--data-dir", folder)
    (folder / "movies.csv.gz").write_bytes(gzip.compress(MOVIES.encode())[:12])
    (folder / "movies.csv").unlink()
    assert "movies.csv.gz can't be unpacked" in ugt("data", "etl", "--source", "movielens", "--data-dir", folder)


def test_a_folder_without_its_source_is_not_ignored(ugt: Ugt, no_ray: None, tmp_path: Path) -> None:
    assert "--source" in ugt("demo", "--data-dir", files(tmp_path / "in"))


@pytest.mark.ray
def test_an_empty_catalogue_leaves_no_artifact(ugt: Ugt, ray_session: None, tmp_path: Path) -> None:
    folder = files(tmp_path / "in", movies=MOVIES, ratings=RATINGS + "1,1,4,10\n")
    assert f"the catalogue of {folder} is empty" in ugt("data", "etl", "--source", "movielens", "--data-dir", folder)
    assert not list((tmp_path / "home" / "artifacts" / "etl").iterdir())


@pytest.mark.ray
def test_a_truncated_gzip_is_named_with_its_last_row_and_leaves_no_artifact(ugt: Ugt, ray_session: None, tmp_path: Path) -> None:
    rng = random.Random(0)
    folder = files(tmp_path / "in", movies=MOVIES + "".join(f"{i},Film {i} (1990),Drama\n" for i in range(50)))
    packed = gzip.compress((RATINGS + "".join(f"{rng.randrange(20)},{rng.randrange(50)},4,{rng.randrange(10**9)}\n" for _ in range(5000))).encode())
    (folder / "ratings.csv.gz").write_bytes(packed[: len(packed) // 2])
    error = ugt("data", "etl", "--source", "movielens", "--data-dir", folder)
    assert "ratings.csv.gz ends in the middle of a record after row" in error
    assert "Fetch it again" in error
    assert not list((tmp_path / "home" / "artifacts" / "etl").iterdir())


@pytest.mark.parametrize("command", [("demo",), ("data", "etl"), ("cluster", "up")], ids=" ".join)
def test_a_home_that_cannot_be_written_is_named(ugt: Ugt, no_ray: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "file").write_text("in the way")  # not a matter of rights: the tests may run as root
    monkeypatch.setenv("UGT_HOME", str(tmp_path / "file"))
    error = ugt(*command)
    assert str(tmp_path / "file") in error
    assert "UGT_HOME" in error


@pytest.mark.parametrize("flag", ["--json", "--predictions", "--report"])
def test_a_result_path_that_cannot_be_written_is_named_before_the_work(ugt: Ugt, no_ray: None, tmp_path: Path, flag: str) -> None:
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path, tmp_path / "file" / "out"):
        error = ugt("evaluate", flag, path)
        assert flag in error
        assert str(tmp_path) in error


def test_a_run_to_compare_with_that_is_none_is_named_before_the_work(ugt: Ugt, no_ray: None, tmp_path: Path) -> None:
    error = ugt("evaluate", "--against", tmp_path / "gone.parquet")
    assert "--against" in error
    assert "gone.parquet" in error
    assert "no version v0009-00000000" in ugt("evaluate", "--against", "v0009-00000000")


def test_a_settings_file_that_is_none_is_named(ugt: Ugt, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("serve: [")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "bad.yaml", tmp_path / "bytes.yaml", tmp_path / "missing.yaml"):
        assert str(path) in ugt("models", "list", "--config", path)


OUT_OF_RANGE = [("UGT_SERVE__PORT", "99999", "serve.port"), ("UGT_RAY__DASHBOARD_PORT", "0", "ray.dashboard_port"), ("UGT_ETL__BLOCKS", "0", "etl.blocks")]


@pytest.mark.parametrize(("name", "value", "field"), OUT_OF_RANGE)
def test_a_number_out_of_range_is_named(ugt: Ugt, monkeypatch: pytest.MonkeyPatch, name: str, value: str, field: str) -> None:
    monkeypatch.setenv(name, value)
    assert field in ugt("models", "list")


def test_a_busy_port_is_named_before_the_work(ugt: Ugt, no_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("UGT_SERVE__PORT", str(port))
        error = ugt("demo")
    assert f"port {port} of 127.0.0.1" in error
    assert "UGT_SERVE__PORT" in error


def test_a_busy_dashboard_port_is_named(ugt: Ugt, no_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("UGT_RAY__DASHBOARD_PORT", str(port))
        monkeypatch.setattr(head, "PORT", cluster.free_port("127.0.0.1", 7480))
        error = ugt("cluster", "up")
    assert f"port {port} of 127.0.0.1" in error
    assert "UGT_RAY__DASHBOARD_PORT" in error


def test_an_address_that_is_none_is_named_whatever_the_environment_says(ugt: Ugt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    assert "at nonsense" in ugt("job", "list", "--address", "nonsense")
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://127.0.0.1:9"
    assert "at http://127.0.0.1:9" in ugt("job", "list")


def test_without_network_a_download_says_what_to_do(ugt: Ugt, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dataset = download.PublicDataset("http://127.0.0.1:9/", ("title.basics.tsv.gz",), "notice", "imdb")
    monkeypatch.setitem(download.DATASETS, "imdb", dataset)
    error = ugt("data", "download", "imdb", "--to", tmp_path / "to")
    assert "cannot download http://127.0.0.1:9/title.basics.tsv.gz" in error
    assert str(tmp_path / "to") in error
    assert not list((tmp_path / "to").iterdir())


@pytest.fixture
def publisher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[bytes]:
    """A server with one whole zip, as `movielens-latest-small`; yields its bytes."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("ratings.csv", RATINGS * 1000)
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "set.zip").write_bytes(whole.getvalue())
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_request", lambda *_: None)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "www"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    dataset = download.PublicDataset(f"http://127.0.0.1:{server.server_port}/", ("set.zip",), "notice", "movielens")
    monkeypatch.setitem(download.DATASETS, "movielens-latest-small", dataset)
    yield whole.getvalue()
    server.shutdown()
    server.server_close()


def test_a_damaged_file_of_somebody_is_named_and_left_to_them(ugt: Ugt, publisher: bytes, tmp_path: Path) -> None:
    target = files(tmp_path / "to") / "set.zip"
    target.write_bytes(publisher[:500])
    assert "set.zip was there already and is damaged" in ugt("data", "download", "movielens-latest-small", "--to", tmp_path / "to")
    assert target.read_bytes() == publisher[:500]
    target.unlink()
    assert download.download("movielens-latest-small", tmp_path / "to", print) == [target]
    assert target.read_bytes() == publisher


def test_a_damaged_answer_is_removed(ugt: Ugt, publisher: bytes, tmp_path: Path) -> None:
    (tmp_path / "www" / "set.zip").write_bytes(publisher[:500])
    assert "arrived damaged" in ugt("data", "download", "movielens-latest-small", "--to", tmp_path / "to")
    assert not list((tmp_path / "to").iterdir())


def test_a_disk_that_fills_up_while_downloading_is_named(ugt: Ugt, publisher: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Partial, "discard", lambda self: None)  # the link below stays where it is
    (files(tmp_path / "to") / "set.zip.partial").symlink_to("/dev/full")  # the kernel's own "No space left on device"
    error = ugt("data", "download", "movielens-latest-small", "--to", tmp_path / "to")
    assert "No space left on device" in error
    assert "--to" in error
    assert not (tmp_path / "to" / "set.zip").exists()


def test_a_matrix_takes_its_room_before_it_is_filled(tmp_path: Path) -> None:
    new_matrix(tmp_path / "x.npy", 1000, 64)
    info = (tmp_path / "x.npy").stat()
    assert info.st_blocks * 512 >= info.st_size == 128 + 1000 * 64 * 4  # header and rows, no holes


def test_a_text_that_cannot_take_its_place_leaves_nothing_aside(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(IsADirectoryError):
        write_text(tmp_path / "taken", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:626] . PytorchStreamWriter failed writing file data/0: file write failed"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
        Exception("(sqlite3.OperationalError) database or disk is full"),
    ],
)
def test_every_library_that_finds_the_disk_full_is_understood(error: Exception) -> None:
    message = plain(error)
    assert message is not None
    assert "the disk is full" in message
    assert "UGT_HOME" in message


def test_a_redis_that_does_not_answer_is_named() -> None:
    client = redis.Redis(host="127.0.0.1", port=9)
    with pytest.raises(redis.ConnectionError) as dead:
        client.ping()
    message = plain(dead.value)
    assert message is not None
    assert "stores.redis_url" in message


def test_a_locked_database_is_named(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "records.sqlite")) as other:
        other.execute("BEGIN EXCLUSIVE")
        engine = sa.create_engine(f"sqlite:///{tmp_path / 'records.sqlite'}", connect_args={"timeout": 0})
        with pytest.raises(sa.exc.OperationalError) as locked, engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE t (x)"))
        engine.dispose()
    message = plain(locked.value)
    assert message is not None
    assert "database is locked" in message
    assert "stores.sql_url" in message

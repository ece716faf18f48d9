"""`ugt data download` against a real HTTP server on this machine: resumed, checked, recorded, and the licence first."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import re
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tenacity import wait_none

from data import download as module
from data.download import DATASETS, download
from data.fetched import RECORD
from ugt.schema import UGTError


@dataclass
class Publisher:
    """A server of files. `cuts`: after how many bytes the next answers break off. `failing`: statuses of the next answers."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    conditional: bool = True  # whether If-Range is understood
    etags: bool = True
    cuts: list[int] = field(default_factory=list)
    failing: list[int] = field(default_factory=list)
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path, Range


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    state = Publisher()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            name, wanted = self.path.lstrip("/"), self.headers.get("Range")
            state.asked.append((name, wanted))
            if state.failing:
                return self.reply(state.failing.pop(0), b"")
            if name not in state.files:
                return self.reply(404, b"no such file")
            body = state.files[name]
            version = {"ETag": f'"{hashlib.md5(body).hexdigest()}"'} if state.etags else {"Last-Modified": formatdate(len(body), usegmt=True)}
            condition = self.headers.get("If-Range")
            same = condition is None or not state.conditional or condition in version.values()
            found = re.fullmatch(r"bytes=(\d+)-", wanted or "")
            if found and state.ranges and same:
                start = int(found.group(1))
                if start >= len(body):
                    return self.reply(416, b"", {"Content-Range": f"bytes */{len(body)}"})
                return self.reply(206, body[start:], version | {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"})
            self.reply(200, body, version)

        def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.end_headers()
            cut = state.cuts.pop(0) if state.cuts and status in (200, 206) and not self.path.endswith(".md5") else None
            self.wfile.write(body[:cut])
            self.close_connection = self.close_connection or cut is not None

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    state.address = f"http://127.0.0.1:{server.server_address[1]}/"
    monkeypatch.setattr(module, "WAIT", wait_none())
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def archive(seed: int = 0) -> bytes:
    """A zip of about 100 kB that doesn't shrink."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as z:
        z.writestr(zipfile.ZipInfo("ml-1m/ratings.dat"), random.Random(seed).randbytes(100_000))
    return packed.getvalue()


def md5_file(name: str, content: bytes) -> bytes:
    return f"MD5 ({name}) = {hashlib.md5(content).hexdigest()}\n".encode()


def fetch(publisher: Publisher, to: Path, name: str = "movielens-1m") -> list[str]:
    said: list[str] = []
    download(name, to, said.append, publisher.address)
    return said


def ranges(publisher: Publisher, name: str = "ml-1m.zip") -> list[str | None]:
    return [wanted for path, wanted in publisher.asked if path == name]


@pytest.mark.parametrize("line", ["MD5 (ml-1m.zip) = {}\n", "{}  ml-1m.zip\n"])
def test_a_file_is_fetched_checked_and_recorded(publisher: Publisher, tmp_path: Path, line: str) -> None:
    content = archive()
    publisher.files = {"ml-1m.zip": content, "ml-1m.zip.md5": line.format(hashlib.md5(content).hexdigest()).encode()}
    said = fetch(publisher, tmp_path)
    assert (tmp_path / "ml-1m.zip").read_bytes() == content
    entry = json.loads((tmp_path / RECORD).read_text())["ml-1m.zip"]
    assert (entry["sha256"], entry["bytes"]) == (hashlib.sha256(content).hexdigest(), len(content))
    assert entry["md5_published"] == hashlib.md5(content).hexdigest()
    assert "MD5 as published" in said[1]
    assert said[-1] == f" next: ugt data etl --source movielens --data-dir {tmp_path}"
    assert {p.name for p in tmp_path.iterdir()} == {"ml-1m.zip", RECORD}


@pytest.mark.parametrize("name", DATASETS)
def test_the_licence_is_said_before_anything_is_asked(publisher: Publisher, tmp_path: Path, name: str) -> None:
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if len(said) == 1:
            assert publisher.asked == []
            assert "use" in line
            assert "non-commercial" in line or "no commercial use" in line

    with pytest.raises(UGTError, match="404"):
        download(name, tmp_path, say, publisher.address)
    assert said


def test_a_lost_connection_is_taken_up_where_it_broke(publisher: Publisher, tmp_path: Path) -> None:
    publisher.files = {"ml-1m.zip": archive(), "ml-1m.zip.md5": md5_file("ml-1m.zip", archive())}
    publisher.cuts = [40_000, 30_000]
    fetch(publisher, tmp_path)
    assert (tmp_path / "ml-1m.zip").read_bytes() == archive()
    assert ranges(publisher) == [None, "bytes=40000-", "bytes=70000-"]


def test_the_next_run_goes_on_where_the_last_one_gave_up(publisher: Publisher, tmp_path: Path) -> None:
    publisher.files = {"ml-1m.zip": archive()}
    publisher.cuts = [40_000] + [0] * (module.ATTEMPTS - 1)
    with pytest.raises(UGTError, match="run the command again \\(it resumes\\)"):
        fetch(publisher, tmp_path)
    assert not (tmp_path / "ml-1m.zip").exists()
    publisher.asked.clear()
    fetch(publisher, tmp_path)
    assert (tmp_path / "ml-1m.zip").read_bytes() == archive()
    assert ranges(publisher) == ["bytes=40000-"]


@pytest.mark.parametrize("etags", [True, False])
@pytest.mark.parametrize("conditional", [True, False])
def test_a_part_of_yesterdays_file_is_not_completed_with_todays(publisher: Publisher, tmp_path: Path, etags: bool, conditional: bool) -> None:
    publisher.files, publisher.etags, publisher.conditional = {"ml-1m.zip": archive(1)}, etags, conditional
    publisher.cuts = [40_000] + [0] * (module.ATTEMPTS - 1)
    with pytest.raises(UGTError, match="cannot download"):
        fetch(publisher, tmp_path)
    publisher.files["ml-1m.zip"] = archive(2) + b"longer"
    with zipfile.ZipFile(io.BytesIO(publisher.files["ml-1m.zip"])) as z:
        assert z.testzip() is None
    fetch(publisher, tmp_path)
    assert (tmp_path / "ml-1m.zip").read_bytes() == publisher.files["ml-1m.zip"]


def test_a_server_without_ranges_sends_it_all_again(publisher: Publisher, tmp_path: Path) -> None:
    publisher.files, publisher.ranges, publisher.cuts = {"ml-1m.zip": archive()}, False, [40_000]
    fetch(publisher, tmp_path)
    assert (tmp_path / "ml-1m.zip").read_bytes() == archive()
    assert ranges(publisher) == [None, "bytes=40000-"]


def test_a_part_that_is_already_the_whole_file_is_kept(publisher: Publisher, tmp_path: Path) -> None:
    publisher.files = {"ml-1m.zip": archive()}
    (tmp_path / "ml-1m.zip.partial").write_bytes(archive())
    fetch(publisher, tmp_path)
    assert (tmp_path / "ml-1m.zip").read_bytes() == archive()
    assert ranges(publisher) == [f"bytes={len(archive())}-"]  # answered 416


def test_a_part_longer_than_the_file_is_fetched_anew(publisher: Publisher, tmp_path: Path) -> None:
    publisher.files = {"ml-1m.zip": archive()}
    (tmp_path / "ml-1m.zip.partial").write_bytes(archive() + b"x")
    fetch(publisher, tmp_path)
    assert (tmp_path / "ml-1m.zip").read_bytes() == archive()


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(publisher: Publisher, tmp_path: Path) -> None:
    publisher.files, publisher.failing = {"ml-1m.zip": archive()}, [404, 503, 429]  # the first is the answer for the MD5
    said = fetch(publisher, tmp_path)
    assert len(ranges(publisher)) == 3
    assert any("503" in line and "attempt 2 of" in line for line in said)
    publisher.asked.clear()
    with pytest.raises(UGTError, match="404"):
        fetch(publisher, tmp_path / "other", "movielens-32m")
    assert ranges(publisher, "ml-32m.zip") == [None]


@pytest.mark.parametrize("content", [archive()[:-3000], archive()[:500] + b"x" + archive()[501:], b"<html>come back later</html>", b""])
def test_a_damaged_archive_is_refused_and_removed(publisher: Publisher, tmp_path: Path, content: bytes) -> None:
    publisher.files = {"ml-1m.zip": content}
    with pytest.raises(UGTError, match=r"arrived damaged .* Run the command again"):
        fetch(publisher, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_gzip_that_ends_too_early_is_refused(publisher: Publisher, tmp_path: Path) -> None:
    whole = gzip.compress(b"tconst\n" + random.Random(0).randbytes(10_000))
    publisher.files = dict.fromkeys(DATASETS["imdb"].files, whole) | {"title.principals.tsv.gz": whole[:-100]}
    with pytest.raises(UGTError, match=r"title\.principals\.tsv\.gz arrived damaged"):
        fetch(publisher, tmp_path, "imdb")
    assert sorted(json.loads((tmp_path / RECORD).read_text())) == ["title.basics.tsv.gz", "title.crew.tsv.gz", "title.ratings.tsv.gz"]
    publisher.files["title.principals.tsv.gz"] = whole
    publisher.asked.clear()
    fetch(publisher, tmp_path, "imdb")
    assert [path for path, _ in publisher.asked] == ["title.principals.tsv.gz", "title.akas.tsv.gz", "title.episode.tsv.gz", "name.basics.tsv.gz"]


def test_another_checksum_than_published_is_refused(publisher: Publisher, tmp_path: Path) -> None:
    publisher.files = {"ml-1m.zip": archive(), "ml-1m.zip.md5": md5_file("ml-1m.zip", b"another file")}
    with pytest.raises(UGTError, match=f"its MD5 is {hashlib.md5(archive()).hexdigest()}, the publisher says"):
        fetch(publisher, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_fetched_file_is_checked_again_on_the_next_run(publisher: Publisher, tmp_path: Path) -> None:
    publisher.files = {"ml-1m.zip": archive()}
    fetch(publisher, tmp_path)
    publisher.asked.clear()
    said = fetch(publisher, tmp_path)
    assert publisher.asked == []
    assert "SHA-256 as recorded" in said[1]
    (tmp_path / "ml-1m.zip").write_bytes(archive(7))  # whole, but not what was fetched
    with pytest.raises(UGTError, match=r"is not the file that was fetched .* Remove it"):
        fetch(publisher, tmp_path)
    assert (tmp_path / "ml-1m.zip").read_bytes() == archive(7)


def test_a_file_put_there_by_hand_is_checked_against_the_publisher(publisher: Publisher, tmp_path: Path) -> None:
    publisher.files = {"ml-1m.zip.md5": md5_file("ml-1m.zip", archive())}
    (tmp_path / "ml-1m.zip").write_bytes(archive(7))
    with pytest.raises(UGTError, match="was there already and is damaged"):
        fetch(publisher, tmp_path)
    assert (tmp_path / "ml-1m.zip").read_bytes() == archive(7)  # not ours to remove
    (tmp_path / "ml-1m.zip").write_bytes(archive())
    fetch(publisher, tmp_path)
    assert "ml-1m.zip" in json.loads((tmp_path / RECORD).read_text())


def test_an_unknown_name_says_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(UGTError, match="imdb, movielens-latest-small, movielens-1m, movielens-25m, movielens-32m"):
        download("movielens-2m", tmp_path, print)

"""Shared fixtures: one local Ray for the session, one real run of the whole pipeline on `configs/tiny.yaml`."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_num_workers_soft_limit", "8")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One Ray cluster at a time: first the tests without Ray, then those whose runs bring their own, last those on the session's."""

    def cluster(item: pytest.Item) -> int:
        fixtures = set(getattr(item, "fixturenames", ()))
        return 3 if "ray_session" in fixtures else 2 if "two_nodes" in fixtures else 1 if fixtures & {"tiny_run", "run_demo"} else 0

    items.sort(key=cluster)  # stable: the order within a group stays


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """The local Ray cluster of this test session (4 logical CPUs). Made once; every test marked `ray` uses it."""
    from ray_app.cluster import connected
    from ugt.settings import RayConfig

    with connected(RayConfig(num_cpus=4, dashboard_port=8365)):
        yield


class DashboardWatcher(threading.Thread):
    """Reads the Ray dashboard's HTTP API while a run lasts, and remembers every job, task, dataset, training run, app and series it showed."""

    def __init__(self, address: str):
        super().__init__(daemon=True)
        self.address = address
        self.stopped = threading.Event()
        self.seen: dict[str, set[str]] = {name: set() for name in ("jobs", "tasks", "datasets", "train_runs", "apps", "series")}

    def run(self) -> None:
        from ray_app.cluster import auth_headers

        while not self.stopped.wait(2):
            with httpx.Client(base_url=self.address, headers=auth_headers(), timeout=5) as client:
                self._look(client)

    def _look(self, client: httpx.Client) -> None:
        with contextlib.suppress(httpx.HTTPError, KeyError, ValueError):
            jobs = client.get("/api/jobs/").json()
            self.seen["jobs"] |= {f"{job['type']} {job['status']}" for job in jobs}
            for job in jobs:
                datasets = client.get(f"/api/data/datasets/{job['job_id']}").json()["datasets"]
                self.seen["datasets"] |= {dataset["dataset"] for dataset in datasets}
        with contextlib.suppress(httpx.HTTPError, KeyError, ValueError):
            self.seen["apps"] |= {f"{name} {app['status']}" for name, app in client.get("/api/serve/applications/").json()["applications"].items()}
        with contextlib.suppress(httpx.HTTPError, KeyError, ValueError):
            tasks = client.get("/api/v0/tasks", params={"limit": 1000, "detail": 0}).json()["data"]["result"]["result"]
            self.seen["tasks"] |= {task["name"] for task in tasks}
        with contextlib.suppress(httpx.HTTPError, KeyError, ValueError):
            self.seen["train_runs"] |= {run["name"] for run in client.get("/api/train/v2/runs/v1").json()["train_runs"]}
        with contextlib.suppress(httpx.HTTPError, KeyError, ValueError):
            for node in client.get("/api/prometheus/sd").json():
                for target in node["targets"]:
                    lines = httpx.get(f"http://{target}/metrics", timeout=5).text.splitlines()
                    self.seen["series"] |= {line.split("{")[0].split(" ")[0] for line in lines if line.startswith("ray_ugt_")}


@dataclass(frozen=True)
class TinyRun:
    home: Path
    report: dict[str, Any]
    artifacts: dict[str, Path]
    output: str
    dashboard: dict[str, set[str]]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """`ugt demo --config configs/tiny.yaml` run once as a user runs it: everything real, 300 titles, 200 users."""
    home = tmp_path_factory.mktemp("tiny") / "home"
    return _run_demo(home)


@pytest.fixture(scope="session")
def run_demo() -> Callable[..., TinyRun]:
    """Run the demo again on a home of the test's own."""
    return _run_demo


def _run_demo(home: Path, *arguments: str, config: Path = ROOT / "configs" / "tiny.yaml", port: int = 8100) -> TinyRun:
    out = home.parent / f"{home.name}.json"
    env = os.environ | {"UGT_HOME": str(home), "UGT_SERVE__PORT": str(port), "UGT_RAY__DASHBOARD_PORT": "8465"}
    command = [sys.executable, "-m", "ray_app", "demo", "--config", str(config), "--json", str(out), *arguments]
    watcher = DashboardWatcher("http://127.0.0.1:8465")
    watcher.start()
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=580)
    finally:
        watcher.stopped.set()
        watcher.join(timeout=30)
    assert done.returncode == 0, f"ugt demo failed:\n{done.stdout[-4000:]}\n{done.stderr[-6000:]}"
    folders = {}
    for step in (home / "artifacts").iterdir():
        manifests = sorted(step.glob("*/manifest.json"), key=lambda p: p.stat().st_mtime)
        if manifests:
            folders[step.name] = manifests[-1].parent
    return TinyRun(home=home, report=json.loads(out.read_text()), artifacts=folders, output=done.stdout, dashboard=watcher.seen)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real public data sets, named by UGT_DATA_DIR; a test that needs them says so when they are not there."""
    folder = os.environ.get("UGT_DATA_DIR")
    if not folder:
        pytest.skip("not run: needs real data; set UGT_DATA_DIR to the folder that holds movielens/, imdb/, amazon-2014/")
    return Path(folder)


@pytest.fixture(scope="session")
def write_corpus() -> Callable[..., Path]:
    """A corpus as `data.corpus` leaves it, of one piece a family, without Ray."""
    from ugt import histories, sequences
    from ugt.artifacts import CREDITS, ITEMS, read_table
    from ugt.histories import HistoryConfig

    def write(etl: Path, histories_dir: Path, families: tuple[str, ...], folder: Path, history: HistoryConfig = HistoryConfig()) -> Path:
        items, credits = read_table(etl / "items", ITEMS).sort_by("item_index"), read_table(etl / "credits", CREDITS)
        words, tokens = [sequences.token("MOV", i) for i in items["item_id"].to_pylist()], sequences.catalogue_tokens(items, credits)
        past = histories.load(histories_dir)
        lists = [past.items[start : start + n] for start, n in zip(past.offsets[:-1], history.apply(past).train_lengths, strict=True)]
        folder.mkdir(parents=True, exist_ok=True)
        corpus = sequences.Corpus(folder)
        for family in families:
            if family == "history":
                found = sequences.history_sentences(words, lists)
            elif family in sequences.PERSON_FAMILIES:
                found = sequences.person_sentences(family, sequences.pairs(words, tokens))
            else:
                found = sequences.item_sentences(family, words, tokens)
            corpus.add(family, 0, sequences.as_lines(found))
        corpus.close()
        return folder

    return write


@pytest.fixture(scope="session")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hand-made `items/ people/ credits/ histories/`: 120 items in 4 genres, 80 users who each keep to one; nobody sees items 0 and 1."""
    import numpy as np
    import pyarrow as pa

    from ugt.artifacts import CREDITS, HISTORIES, ITEMS, PEOPLE, write_table

    folder, rng, genres = tmp_path_factory.mktemp("catalogue"), np.random.default_rng(0), ["Comedy", "Drama", "Horror", "War"]
    items = [
        {"item_index": i, "item_id": f"tt{i:04d}", "item_type": "movie", "title": f"Film {i}", "original_title": None, "year": 1950 + i % 60}
        | {"runtime_minutes": 80 + i % 50, "genres": [genres[i % 4]], "countries": ["us"] if i % 3 else [], "rating": 5.0 + i % 5, "votes": 10 * i}
        | {"description": "a story" if i % 2 else None, "imdb_id": None}
        for i in range(120)
    ]
    items[1] |= {"genres": [], "year": None, "rating": None, "votes": None, "runtime_minutes": None, "countries": None, "description": None}
    credits = [
        {"item_index": i, "item_id": f"tt{i:04d}", "person_id": f"nm{i % 4 + 4 * (i % 5 * role):03d}", "role": ("director", "actor")[role], "ordering": role}
        for i in range(2, 120)
        for role in range(2)
    ]
    names = sorted({row["person_id"] for row in credits})
    people = [{"person_id": p, "name": f"Person {p}", "birth_year": None, "professions": []} for p in names]
    histories = []
    for u in range(80):
        seen = rng.permutation(np.arange(4 + u % 4, 120, 4))[: rng.integers(5, 15)].tolist()
        histories.append(
            {"user_id": f"u{u:03d}", "item_index": seen, "action": [9] * len(seen), "value": [4.0] * len(seen), "timestamp": list(range(len(seen)))}
        )
    for name, rows, schema in (("items", items, ITEMS), ("people", people, PEOPLE), ("credits", credits, CREDITS), ("histories", histories, HISTORIES)):
        write_table(pa.Table.from_pylist(rows, schema=schema), folder / name)
    return folder

"""`ugt bench word2vec`: our Word2Vec against plain gensim, and two Ray workers against one, on a generated catalogue.

Choices: the corpus is that of the default families, made by the stage itself. A round trains every contender once, with the same parameters and
the round's seed, in an order that changes from round to round; medians over rounds are reported. Words are words of the corpus as it lies in
the file, times epochs. Wall time suffers from whatever else runs on the machine; words per CPU second hardly do, and are the measure "per
core". Start-up of actors and the count of the vocabulary are stated apart; that of Ray is not in it.
"""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ugt.artifacts import CREDITS, HISTORIES, ITEMS, write_table
from ugt.histories import HistoryConfig
from ugt.schema import Config
from ugt.sequences import Corpus
from ugt.word2vec import Word2VecConfig, parameters

START = 1_420_070_400  # of the generated events
CONTENDERS = ("gensim", "ours", "ray_1", "ray_2")


class Word2VecBench(Config):
    titles: int = 4_000
    users: int = 2_000
    events: int = 100_000
    epochs: int = 10
    rounds: int = 3  # one seed each
    seed: int = 0


def generated(bench: Word2VecBench, folder: Path) -> tuple[pa.Table, pa.Table]:
    """Write `items/ credits/ histories/` of the sample's generator (Zipf popularity, niches, franchises); returns items and credits."""
    from ugt import synthetic_catalogue, synthetic_taste

    made = synthetic_catalogue.build(bench.titles, bench.seed)
    events = synthetic_taste.generate(made.taste, bench.users, bench.events, bench.seed, START)
    items: list[dict[str, Any]] = []
    credits: list[dict[str, Any]] = []
    for i, t in enumerate(made.titles):
        about = {"item_index": i, "item_id": t.tconst, "item_type": "series" if t.kind == "tvSeries" else "movie", "title": t.title, "year": t.year}
        items.append(about | {"genres": list(t.genres), "countries": [t.country], "rating": t.rating, "votes": t.votes})
        people = [(role, person) for role, own in (("director", t.directors), ("actor", t.actors), ("writer", t.writers)) for person in own]
        credits += [
            {"item_index": i, "item_id": t.tconst, "person_id": made.people[person].nconst, "role": role, "ordering": place}
            for place, (role, person) in enumerate(people)
        ]
    tables = pa.Table.from_pylist(items, ITEMS), pa.Table.from_pylist(credits, CREDITS)
    for name, table in zip(("items", "credits"), tables, strict=True):
        write_table(table, folder / name)
    rows = []
    for u, (first, end) in enumerate(zip(events.offsets[:-1], events.offsets[1:], strict=True)):
        seen, times = events.items[first:end].tolist(), events.timestamps[first:end].tolist()
        rows.append({"user_id": str(u), "item_index": seen, "action": [9] * len(seen), "value": [None] * len(seen), "timestamp": times})
    write_table(pa.Table.from_pylist(rows, HISTORIES), folder / "histories")
    return tables


def run(bench: Word2VecBench, say: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """The rows of the report. Ray must be connected and have two CPUs."""
    import ray

    from data import corpus as stage

    folder = Path(tempfile.mkdtemp(prefix="ugt-bench-word2vec-"))
    try:
        items, credits = generated(bench, folder)
        config = Word2VecConfig(epochs=bench.epochs, min_words=0)
        (folder / "corpus").mkdir()
        before = time.monotonic()
        # as a task, as in the main job: what Ray Data tells its driver at length stays in the log of that task
        figures = ray.get(ray.remote(num_cpus=0)(stage.run).remote(folder, folder, config.corpus(), folder / "corpus", HistoryConfig()))
        made = {"sentences": figures["sentences"], "words": figures["words"], "families": figures["families"], "seconds": round(time.monotonic() - before, 2)}
        say(f"corpus        {made['words']:,} words in {made['sentences']:,} sentences by Ray Data, {made['seconds']} s")
        rounds = [_round(bench, number, config, folder, items, credits, say) for number in range(bench.rounds)]
        return _report(bench, config, made, rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _round(
    bench: Word2VecBench, number: int, config: Word2VecConfig, folder: Path, items: pa.Table, credits: pa.Table, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Every contender once."""
    from ugt.vector_report import report

    own, found = config.model_copy(update={"seed": bench.seed + number}), {}
    vectors = {}
    for name in CONTENDERS[number % 4 :] + CONTENDERS[: number % 4]:
        vectors[name], found[name] = _train(name, own, Corpus.load(folder / "corpus"), folder)
        judged = report(vectors[name], items, credits, seed=bench.seed)
        found[name] |= {f"same_{kind}@10": of["rate"] for kind, of in judged["neighbours"].items()}
        found[name] |= {f"chance_{kind}": of["chance"] for kind, of in judged["neighbours"].items()}
        say(f"round {number + 1}       {name:<7} " + " · ".join(f"{key} {value:,.4g}" for key, value in found[name].items() if "chance" not in key))
    found["ours"]["same_bytes_as_gensim"] = bool(np.array_equal(vectors["ours"].vectors, vectors["gensim"].vectors))
    return found


def _train(name: str, config: Word2VecConfig, corpus: Corpus, folder: Path) -> tuple[Any, dict[str, Any]]:
    """Vectors of one contender, with its seconds: `total` with start-up, `training` without (not separable for `ours`, which is one call of gensim)."""
    from train import word2vec, word2vec_workers

    before, cpu = time.monotonic(), time.process_time()
    if name == "gensim":
        from gensim.models import Word2Vec

        whole = folder / "plain.txt"
        whole.write_bytes(b"".join(path.read_bytes() for path in corpus.files()))
        before, cpu = time.monotonic(), time.process_time()
        model = Word2Vec(**parameters(config))
        model.build_vocab(corpus_file=str(whole))
        start, start_cpu = time.monotonic(), time.process_time()
        model.train(corpus_file=str(whole), total_examples=model.corpus_count, total_words=corpus.words, epochs=config.epochs)
        vectors, timing = model.wv, word2vec_workers.Timing(time.monotonic() - start, 0.0, time.process_time() - start_cpu)
        total_cpu = time.process_time() - cpu
    elif name == "ours":
        vectors = word2vec.fit(corpus, config, folder)
        total_cpu = time.process_time() - cpu
        timing = None
    else:
        timings: list[word2vec_workers.Timing] = []
        vectors = word2vec_workers.fit(corpus, config.model_copy(update={"workers": int(name[-1])}), folder, timings.append)
        timing, total_cpu = timings[0], None
    words, total = corpus.words * config.epochs, time.monotonic() - before
    row: dict[str, Any] = {"total_seconds": round(total, 2)}
    if total_cpu is not None:
        row["words_per_cpu_second_with_vocabulary"] = round(words / total_cpu)
    if timing is not None:
        row |= {
            "words_per_second": round(words / timing.seconds),
            "words_per_cpu_second": round(words / timing.cpu_seconds),
            "training_seconds": round(timing.seconds, 2),
            "averaging_seconds": round(timing.averaging, 3),
            "start_seconds": round(total - timing.seconds, 2),
        }
    return vectors, row


def _report(bench: Word2VecBench, config: Word2VecConfig, corpus: Mapping[str, Any], rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    def median(name: str, key: str) -> float:
        return statistics.median(of[name][key] for of in rounds)

    def ratio(a: str, b: str, key: str) -> float:
        return round(statistics.median(of[a][key] / of[b][key] for of in rounds), 3)

    keys = ("words_per_second", "words_per_cpu_second", "words_per_cpu_second_with_vocabulary", "training_seconds", "averaging_seconds", "start_seconds")
    contenders = {name: {key: median(name, key) for key in (*keys, "total_seconds") if key in rounds[0][name]} for name in CONTENDERS}
    return {
        "bench": "word2vec",
        "units": {"words_per_second": "words of the corpus x epochs / second of training", "same_*@10": "rate, 1 is perfect"},
        "setup": bench.model_dump(),
        "parameters": config.model_dump(mode="json"),
        "corpus": dict(corpus),
        "contenders": contenders,
        "rows": [
            {
                "name": "words per core, our call of gensim against plain gensim",
                "value": ratio("ours", "gensim", "words_per_cpu_second_with_vocabulary"),
                "bar": 0.95,
            },
            {"name": "words per core, one Ray worker against plain gensim", "value": ratio("ray_1", "gensim", "words_per_cpu_second"), "bar": 0.95},
            {"name": "words per second, one Ray worker against plain gensim (wall)", "value": ratio("ray_1", "gensim", "words_per_second"), "bar": 0.95},
            {"name": "words per second, two Ray workers against one (wall)", "value": ratio("ray_2", "ray_1", "words_per_second"), "bar": 1.5},
            {"name": "words per core, two Ray workers against one", "value": ratio("ray_2", "ray_1", "words_per_cpu_second"), "bar": None},
        ],
        "quality": {kind: _quality(rounds, kind) for kind in ("director", "series", "genre") if f"same_{kind}@10" in rounds[0]["gensim"]},
        "ours_same_bytes_as_gensim": all(of["ours"]["same_bytes_as_gensim"] for of in rounds),
        "rounds": rounds,
        "seeds": [bench.seed + number for number in range(bench.rounds)],
        "host": {"cpus": os.cpu_count(), "machine": platform.machine(), "load_average": os.getloadavg(), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("gensim", "ray", "numpy")},
    }


def _quality(rounds: list[dict[str, dict[str, Any]]], kind: str) -> dict[str, Any]:
    """Mean rate of each contender, and its difference to gensim beside twice the standard error of that difference between seeds."""
    rates = {name: np.array([of[name][f"same_{kind}@10"] for of in rounds]) for name in CONTENDERS}
    found: dict[str, Any] = {"chance": rounds[0]["gensim"][f"chance_{kind}"]}
    for name, rate in rates.items():
        spread = float(np.sqrt((rate.var(ddof=1) + rates["gensim"].var(ddof=1)) / len(rate))) if len(rate) > 1 else None
        difference = float(rate.mean() - rates["gensim"].mean())
        found[name] = {"rate": round(float(rate.mean()), 4), "to_gensim": round(difference, 4), "two_standard_errors": spread and round(2 * spread, 4)}
    return found

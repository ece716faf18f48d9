"""Evaluation through real Ray actors on a small world: everything in metrics.json can be recomputed from the written predictions."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from train import baselines, evaluate, ranking
from ugt import comparison, sasrec
from ugt import histories as history_files
from ugt.artifacts import HISTORIES, PREDICTIONS, USERS, write_table
from ugt.artifacts import ITEMS as ITEM_COLUMNS
from ugt.evaluation import BASELINES, EvaluationConfig, SasRecConfig
from ugt.memory import Memory
from ugt.metrics import of_places
from ugt.model.config import DecodingConfig, ModelConfig, TrainingConfig
from ugt.model.inputs import UserVocabulary
from ugt.ranking import Fusion
from ugt.schema import UGTError
from ugt.scoring import Ranking, candidates, load_checkpoint, load_ranking, new_model, save_checkpoint, user_codes
from ugt.semantic_ids import SemanticIds

ITEMS, PEOPLE = 70, 60
CONFIG = EvaluationConfig(bootstrap_samples=100, knn_neighbours=20, baselines=BASELINES)
DECODING = DecodingConfig(beam_width=50)
FUSION, WITHOUT_MEMORY = Fusion(weight=0.4, followed=0.7, likeness=2.0), Fusion(weight=0.7)


class World:
    """Histories, users, semantic IDs, an untrained checkpoint and the truth of an oracle that knows the target of every second user."""

    def __init__(self, root: Path):
        import torch

        self.root = root
        rng = np.random.default_rng(0)
        # skewed, some repeats, one user too short to be evaluated
        lists = [rng.choice(ITEMS, int(rng.integers(3, 25)), p=np.arange(ITEMS, 0, -1) / sum(range(ITEMS + 1))).tolist() for _ in range(PEOPLE - 1)] + [[1, 2]]
        users = [f"u{i:03d}" for i in range(PEOPLE)]
        columns = [users, lists, [[1] * len(x) for x in lists], [[4.0] * len(x) for x in lists], [list(range(1_000, 1_000 + len(x))) for x in lists]]
        write_table(pa.Table.from_arrays([pa.array(c, t) for c, t in zip(columns, HISTORIES.types, strict=True)], schema=HISTORIES), root / "histories")
        ages = [None if i % 3 == 0 else 20 + 10 * (i % 2) for i in range(PEOPLE)]
        people = {"user_id": users, "gender": [None] * PEOPLE, "age": ages, "occupation": [None] * PEOPLE}
        write_table(pa.table(people, schema=USERS), root / "etl" / "users")
        codes = np.array([(i % 4, i // 4 % 4, i // 16) for i in range(ITEMS)])
        self.item_ids = [f"tt{i:04d}" for i in range(ITEMS)]
        columns = {f.name: pa.nulls(ITEMS, f.type) for f in ITEM_COLUMNS} | {"item_index": pa.array(range(ITEMS), pa.int32()), "item_id": self.item_ids}
        write_table(pa.table(columns, schema=ITEM_COLUMNS), root / "etl" / "items")
        (root / "semantic_ids").mkdir()
        SemanticIds.from_codes(codes, self.item_ids, 4, 4, 8).save(root / "semantic_ids")
        np.save(root / "semantic_ids" / "item_vectors.npy", rng.normal(size=(ITEMS, 8)).astype(np.float32))
        (root / "word2vec").mkdir()
        np.save(root / "word2vec" / "word2vec.npy", rng.normal(size=(ITEMS, 8)).astype(np.float32))
        baselines.run(root / "etl", root / "histories", root / "word2vec", CONFIG.fitted(), root / "baselines")
        torch.manual_seed(0)
        sasrec.save(sasrec.SasRec(SasRecConfig(width=8).like(ModelConfig(max_length=20), TrainingConfig()), ITEMS).eval(), root / "sasrec")
        model = new_model(ModelConfig(width=16, encoder_layers=1), root / "semantic_ids", UserVocabulary())
        split = history_files.load(root / "histories").split()
        memory = Memory.fit(*split.train_events(), rng.normal(size=(ITEMS, 8)).astype(np.float32))
        save_checkpoint(model, root / "checkpoint", Ranking(FUSION, WITHOUT_MEMORY, memory))
        self.lists = dict(zip(users, lists, strict=True))
        oracle = users[:-1:2]
        rows = [["gone", self.item_ids[self.lists[u][-1]]] for u in oracle]  # an item the catalogue dropped is passed over
        truth = pa.table({"user_id": oracle, "head": ["oracle"] * len(oracle), "filtered": [True] * len(oracle), "item_ids": rows}, schema=PREDICTIONS)
        pq.write_table(truth, root / "truth.parquet")

    def evaluate(self, out: Path, **changes) -> dict:
        r = self.root
        arguments = {
            "histories_dir": r / "histories",
            "users_dir": r / "etl" / "users",
            "semantic_ids_dir": r / "semantic_ids",
            "checkpoint_dir": r / "checkpoint",
            "baselines_dir": r / "baselines",
            "sasrec_dir": r / "sasrec",
            "truth": r / "truth.parquet",
            "config": CONFIG,
            "decoding": DECODING,
            "out_dir": out,
        }
        return evaluate.run(**(arguments | changes))


def slow_scores(world: World, fusion: Fusion, filtered: bool) -> list[dict[str, float]]:
    """The fused score of every candidate of every test user by plain loops over items, from the scores of the heads and the signals of memory."""
    split = history_files.load(world.root / "histories").split()
    users, model, how = split.users("test"), load_checkpoint(world.root / "checkpoint", world.root / "semantic_ids"), load_ranking(world.root / "checkpoint")
    codes_UA = user_codes(world.root / "etl" / "users", [split.histories.user_ids[u] for u in users], model.vocabulary)
    scores = []
    for u, found in zip(users, candidates(model, split, users, "test", filtered, codes_UA, ITEMS, DECODING), strict=True):  # every legal item is a candidate
        history = split.example(int(u), "test").items
        recall = how.memory.recall(history)  # type: ignore[union-attr]
        beam, dense = dict(zip(found.items.tolist(), found.log_probs.tolist(), strict=True)), dict(zip(*(x.tolist() for x in found[3:5]), strict=True))
        asked = set(beam) | set(found.dense_items[:50].tolist())
        if fusion.remembers:
            asked |= set(sorted(set(recall.items_F.tolist()), key=lambda i: (-recall.count_F[recall.items_F.tolist().index(i)], i))[:50])
        score = {}
        for item in asked:
            followed, likeness = recall.signals(np.array([item]))[0].tolist()
            heads = fusion.weight * beam.get(item, min(beam.values())) + (1 - fusion.weight) * dense[item]
            score[world.item_ids[item]] = heads + fusion.followed * followed + fusion.likeness * likeness
        scores.append(score)
    return scores


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.mark.ray
def test_an_evaluation_is_honest_and_repeatable(ray_session: None, world: World, tmp_path: Path) -> None:
    shown = world.evaluate(tmp_path / "first")
    report = json.loads((tmp_path / "first" / "metrics.json").read_text())
    predictions = pl.read_parquet(tmp_path / "first" / "predictions.parquet")

    # who was ranked, by whom
    evaluated = [u for u in world.lists if len(world.lists[u]) >= 3]
    heads = {*ranking.HEADS, *BASELINES}
    assert set(predictions["head"]) == heads | {"oracle"}
    for head in heads:
        for filtered in (True, False):
            assert predictions.filter((pl.col("head") == head) & (pl.col("filtered") == filtered))["user_id"].to_list() == evaluated
    assert report["protocol"]["users_evaluated"] == len(evaluated) == PEOPLE - 1
    assert report["protocol"]["users_of_oracle"] == 30

    # every list: real items, none twice, nothing seen but the target, and the same figures by plain loops
    for (head, filtered), rows in predictions.group_by("head", "filtered"):
        hits, gains = [], []
        for user, listed in rows.select("user_id", "item_ids").iter_rows():
            seen, target = [world.item_ids[i] for i in world.lists[user][:-1]], world.item_ids[world.lists[user][-1]]
            assert len(listed) == len(set(listed)) <= 50
            assert set(listed) <= set(world.item_ids)
            assert not filtered or not (set(listed) & set(seen)) - {target}
            place = listed.index(target) if target in listed[:10] else None
            hits.append(place is not None)
            gains.append(0.0 if place is None else 1 / np.log2(place + 2))
        section = report["heads" if head in ranking.HEADS else "baselines"][head]["filtered" if filtered else "unfiltered"]
        assert section["recall@10"] == pytest.approx(np.mean(hits), abs=1e-12), (head, filtered)
        assert section["ndcg@10"] == pytest.approx(np.mean(gains), abs=1e-12), (head, filtered)
        if head == "fused" and filtered:
            assert report["metrics"]["ugt"]["recall@10"] == shown["recall@10"] == section["recall@10"]
    assert report["metrics"]["oracle"]["recall@10"] == 1.0

    # the fused lists are those of both heads and memory, the others those of the heads alone
    for filtered in (True, False):
        listed = {h: predictions.filter((pl.col("head") == h) & (pl.col("filtered") == filtered))["item_ids"].to_list() for h in ("fused", "without_memory")}
        for head, fusion in (("fused", FUSION), ("without_memory", WITHOUT_MEMORY)):
            for items, score in zip(listed[head], slow_scores(world, fusion, filtered), strict=True):
                best = sorted(score.values(), reverse=True)[:10]
                assert [score[item] for item in items[:10]] == pytest.approx(best, abs=1e-4), (head, filtered)  # near ties may stand in either order
        assert listed["fused"] != listed["without_memory"]

    # popularity counts the training part only
    counts = np.bincount([i for u in world.lists for i in (world.lists[u][:-2] if u in evaluated else world.lists[u])], minlength=ITEMS)
    order = [world.item_ids[i] for i in sorted(range(ITEMS), key=lambda i: (-counts[i], i))]
    unfiltered = predictions.filter((pl.col("head") == "popularity") & ~pl.col("filtered"))["item_ids"].to_list()
    assert all(listed == order[:50] for listed in unfiltered)

    # intervals hold their figures; an untrained model knows no more of a stranger than popularity does
    low, high = report["intervals"]["ugt_recall@10"]
    assert low <= report["metrics"]["ugt"]["recall@10"] <= high
    assert {f"ugt_{w}_{m}_recall@10" for w in ("minus", "over") for m in (*BASELINES, "oracle")} <= set(report["intervals"])
    assert report["permuted"]["falls_to_popularity"] is True

    # the lines that docs/evaluation.md gives to everybody
    home = tmp_path / "artifacts"
    for step, folder in (("semantic_ids", world.root / "semantic_ids"), ("histories", world.root), ("evaluate", tmp_path / "first")):
        (home / step).mkdir(parents=True)
        (home / step / "key").symlink_to(folder)
    code = re.search(r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(), re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1].replace('".ugt/artifacts"', repr(str(home))), names)
    for row in names["figures"].iter_rows(named=True):
        section = report["heads" if row["head"] in ranking.HEADS else "baselines"][row["head"]]["filtered" if row["filtered"] else "unfiltered"]
        assert (row["recall@10"], row["ndcg@10"]) == pytest.approx((section["recall@10"], section["ndcg@10"]), abs=1e-12)
    assert names["figures"].height == 21

    # the per-user places are those of the lists, and every figure follows from them
    per_user = pl.read_parquet(tmp_path / "first" / "per_user.parquet")
    assert dict(per_user.select("user_id", "target_id").rows()) == {u: world.item_ids[world.lists[u][-1]] for u in evaluated}
    both = per_user.join(predictions, on=["user_id", "head", "filtered"], how="full", coalesce=True)
    assert both.height == per_user.height == predictions.height
    for target, place, listed in both.select("target_id", "place", "item_ids").iter_rows():
        assert place == (listed.index(target) + 1 if target in listed else None)

    # every slice counts each user once, and its figures are those of its users
    for rows in report["slices"].values():
        assert sum(row["users"] for row in rows) == len(evaluated)
        for row in rows:
            assert set(row["filtered"]) == set(row["unfiltered"]) == heads
            low, high = row["filtered"]["fused"]["recall@10"][1:]
            assert low <= row["filtered"]["fused"]["recall@10"][0] <= high
    short = per_user.filter((pl.col("head") == "fused") & pl.col("filtered") & (pl.col("history_length") <= 3))
    assert short.height > 0
    first = report["slices"]["history_length"][0]
    assert (first["slice"], first["users"]) == ("1 to 3", short.height)
    assert first["filtered"]["fused"]["recall@10"][0] == pytest.approx((short["place"].fill_null(99) <= 10).mean())

    # both rules have intervals for everybody, and UGT minus each other ranking
    for rule in ("filtered", "unfiltered"):
        assert set(report["intervals_by_rule"][rule]) == heads == {*report["fused_minus"][rule], "fused"}

    # in this process, without Ray: the same bytes
    world.evaluate(tmp_path / "second", actors=0)
    for name in ("metrics.json", "predictions.parquet", "per_user.parquet", "report.html"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_two_runs_are_compared_on_the_same_users(world: World, tmp_path: Path) -> None:
    world.evaluate(tmp_path / "one", actors=0)
    run = comparison.load_run(tmp_path / "one", "one")
    same = comparison.compare(run, run, 100, 0)
    assert {row["difference"] for row in same["rows"]} == {0.0}
    assert same["sentence"].startswith("No difference is shown")
    # another system's lists, of half of the users: the held-out item first
    users = [u for u in world.lists if len(world.lists[u]) >= 3][:30]

    def first(user: str) -> list[str]:
        target = world.item_ids[world.lists[user][-1]]
        return [target, *(i for i in world.item_ids if i != target)][:50]

    table = {"user_id": users, "head": ["theirs"] * 30, "filtered": [True] * 30, "item_ids": [first(u) for u in users]}
    pq.write_table(pa.table(table, schema=PREDICTIONS), tmp_path / "theirs.parquet")
    theirs = comparison.load_predictions(tmp_path / "theirs.parquet", run, world.item_ids)
    found = comparison.compare(run, theirs, 100, 0)
    assert (found["users"], found["users_left_out"]) == (30, {"this": len(world.lists) - 31, "other": 0})
    for row in found["rows"]:
        own = run.places.filter((pl.col("head") == "fused") & pl.col("filtered") & pl.col("user_id").is_in(users))["place"].fill_null(0).to_numpy()
        assert row["other"] == 1.0
        assert row["this"] == pytest.approx(of_places(own)[row["metric"]].mean())
        assert row["verdict"] == "worse"
    # refused: other targets, another catalogue, an item twice
    moved = run.places.with_columns(target_id=pl.when(pl.col("user_id") == users[0]).then(pl.lit("tt0000x")).otherwise("target_id"))
    with pytest.raises(UGTError, match=f"other targets: 1 of .*'{users[0]}'"):
        comparison.compare(run, comparison.Run("moved", moved, run.catalogue_hash, 50), 100, 0)
    with pytest.raises(UGTError, match="another catalogue"):
        comparison.compare(run, comparison.Run("other", run.places, "0" * 16, 50), 100, 0)
    for lists, message in (([["elsewhere"]], r"another catalogue: 1 of its 1 items .*'elsewhere'"), ([["tt0001", "tt0001"]], "an item twice")):
        pq.write_table(pa.table(table | {k: v[:1] for k, v in table.items()} | {"item_ids": lists}, schema=PREDICTIONS), tmp_path / "bad.parquet")
        with pytest.raises(UGTError, match=message):
            comparison.load_predictions(tmp_path / "bad.parquet", run, world.item_ids)


def test_permuted_histories_keep_the_target_and_nobodys_own_history(world: World) -> None:
    split = history_files.load(world.root / "histories").split()
    rows = np.flatnonzero(split.evaluated)
    work = ranking.Workload(split, rows, np.arange(len(rows))[:, None], np.arange(len(rows)))
    permuted = ranking.permuted(work, seed=0)
    given = permuted.codes_UA[:, 0]
    assert sorted(given) == list(range(len(rows)))
    assert not (given == np.arange(len(rows))).any()
    for row, other in enumerate(given):
        theirs, example = split.example(int(rows[other]), "test"), permuted.split.example(int(permuted.rows_U[row]), "test")
        assert example.items.tolist() == theirs.items.tolist()
        assert example.target_timestamp == theirs.target_timestamp
        assert example.target == split.example(int(rows[row]), "test").target


@pytest.mark.ray
def test_what_cannot_be_evaluated_is_said(ray_session: None, world: World, tmp_path: Path) -> None:
    short = [["a"], [[1, 2]], [[1, 1]], [[1.0, 1.0]], [[1, 2]]]
    write_table(pa.Table.from_arrays([pa.array(c, t) for c, t in zip(short, HISTORIES.types, strict=True)], schema=HISTORIES), tmp_path / "histories")
    with pytest.raises(UGTError, match="3 events or more"):
        world.evaluate(tmp_path / "out", histories_dir=tmp_path / "histories")
    stranger = pa.table({"user_id": ["nobody"], "head": ["oracle"], "filtered": [True], "item_ids": [["x"]]}, schema=PREDICTIONS)
    pq.write_table(stranger, tmp_path / "truth.parquet")
    with pytest.raises(UGTError, match="none of the users and items"):
        world.evaluate(tmp_path / "out", truth=tmp_path / "truth.parquet")
    with pytest.raises(UGTError, match="no checkpoint"):
        world.evaluate(tmp_path / "out", checkpoint_dir=tmp_path)
    with pytest.raises(UGTError, match="no baselines"):
        world.evaluate(tmp_path / "out", baselines_dir=tmp_path)
    card = json.loads((world.root / "baselines" / baselines.CARD).read_text())
    shutil.copytree(world.root / "baselines", tmp_path / "baselines")
    (tmp_path / "baselines" / baselines.CARD).write_text(json.dumps(card | {"items": 7}))
    with pytest.raises(UGTError, match=r"baselines .* another catalogue: fitted on 7 items"):
        world.evaluate(tmp_path / "out", baselines_dir=tmp_path / "baselines")
    assert not (tmp_path / "out").exists()

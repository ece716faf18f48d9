"""Fitting the baselines and SASRec: choices are made on validation, and no event from the cut on reaches anything that is fitted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from train import baselines, sasrec, word2vec
from train.ugt import fitted_memory
from train.windows import TrainingWindows
from ugt import histories as history_files
from ugt import sasrec as sasrec_model
from ugt.artifacts import HISTORIES, read_table, write_table
from ugt.evaluation import BASELINES, BaselineConfig, SasRecConfig
from ugt.histories import HistoryConfig
from ugt.model.config import ModelConfig, TrainingConfig
from ugt.schema import UGTError
from ugt.semantic_ids import CONTENT
from ugt.word2vec import Word2VecConfig

TIME = HistoryConfig(split="time", validation_from=0.6, test_from=0.8)
WORD2VEC = Word2VecConfig(width=8, min_words=2_000)
CONFIG = BaselineConfig(names=BASELINES[:-1], knn_neighbours=20)


@pytest.fixture(scope="module")
def etl(catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The catalogue with users who have no attributes, and times that mix the users."""
    from ugt.artifacts import USERS

    folder = tmp_path_factory.mktemp("etl")
    for name in ("items", "people", "credits"):
        (folder / name).symlink_to(catalogue / name)
    table = read_table(catalogue / "histories", HISTORIES)
    lists = table["item_index"].to_pylist()
    times = [[1_000 + 100 * place + u for place in range(len(x))] for u, x in enumerate(lists)]
    write_table(table.set_column(4, HISTORIES.field("timestamp"), pa.array(times, HISTORIES.types[4])), folder / "histories")
    users = table["user_id"].to_pylist()
    write_table(pa.table({"user_id": users, "gender": [None] * 80, "age": [None] * 80, "occupation": [None] * 80}, schema=USERS), folder / "users")
    return folder


def rewritten_future(etl: Path, folder: Path, part: str) -> Path:
    """The same events, but whatever lies behind the training (or the validation) part is of item 0."""
    table = read_table(etl / "histories", HISTORIES)
    split = TIME.apply(history_files.load(etl))
    lists, times = table["item_index"].to_pylist(), np.sort(split.histories.timestamps)
    cut = times[int((TIME.validation_from if part == "train" else TIME.test_from) * len(times))]
    changed = [[i if t < cut else 0 for i, t in zip(x, y, strict=True)] for x, y in zip(lists, table["timestamp"].to_pylist(), strict=True)]
    assert changed != lists
    write_table(table.set_column(1, HISTORIES.field("item_index"), pa.array(changed, HISTORIES.types[1])), folder / "histories")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_no_event_from_the_cut_on_reaches_vectors_counts_or_training(etl: Path, tmp_path: Path, write_corpus: Callable[..., Path]) -> None:
    other = rewritten_future(etl, tmp_path / "other", "train")
    for name, histories in (("a", etl), ("b", other)):
        (tmp_path / name).mkdir()
        corpus = write_corpus(etl, histories, WORD2VEC.families, tmp_path / f"{name}-corpus", TIME)
        word2vec.run(etl, histories, corpus, WORD2VEC, tmp_path / name, TIME)
        baselines.run(etl, histories, tmp_path / name, CONFIG, tmp_path / f"{name}-baselines", TIME)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    fitted = [{k: v for k, v in files(tmp_path / f"{name}-baselines").items() if k != baselines.CARD} for name in "ab"]
    assert fitted[0] == fitted[1]
    assert {"popularity.npy", "item_knn.npz", "transitions_1.npz", "transitions_3.npz", "word2vec.npy"} <= set(fitted[0])
    batches = []
    for histories in (etl, other):
        windows = TrainingWindows(TIME.apply(history_files.load(histories)), np.zeros((80, 3), np.int64), 5, 0.5, 16, 0)
        batches.append([{k: v.tolist() for k, v in windows.batch(part).inputs.items()} for part in windows.epoch(0)])
    assert batches[0] == batches[1]
    np.save(tmp_path / CONTENT, np.eye(120, 4, dtype=np.float32))
    memories = [fitted_memory(TIME.apply(history_files.load(histories)), tmp_path) for histories in (etl, other)]
    assert len(memories[0].item_P)
    assert all(np.array_equal(a, b) for a, b in zip(*(vars(memory).values() for memory in memories), strict=True))


def test_what_is_chosen_is_chosen_on_validation_alone(etl: Path, tmp_path: Path, write_corpus: Callable[..., Path]) -> None:
    """The test part rewritten, the choices stay; and the chosen settings are the best of those tried."""
    word2vec_dir, other = tmp_path / "w", rewritten_future(etl, tmp_path / "other", "validation")
    word2vec_dir.mkdir()
    word2vec.run(etl, etl, write_corpus(etl, etl, WORD2VEC.families, tmp_path / "corpus", TIME), WORD2VEC, word2vec_dir, TIME)
    for name, histories in (("a", etl), ("b", other)):
        baselines.run(etl, histories, word2vec_dir, CONFIG, tmp_path / name, TIME)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    card = json.loads((tmp_path / "a" / baselines.CARD).read_text())
    assert card["names"] == ["popularity", "item_knn", "word2vec", "transitions"]  # nobody has attributes, so there is no segment
    split = TIME.apply(history_files.load(etl))
    for name, chosen in card["chosen"].items():
        figures = [tried["validation_ndcg@10"] for tried in chosen["tried"]]
        assert chosen["validation_ndcg@10"] == max(figures) > min(figures)
        ranker = baselines.load(tmp_path / "a").rankers[name]
        gains = []
        for u in split.users("validation"):
            example = split.example(int(u), "validation")
            scores = ranker.scores([example.items])[0]  # type: ignore[attr-defined]
            order = [i for i in sorted(range(120), key=lambda i: (-scores[i], i)) if i not in set(example.items) - {example.target}]
            place = order.index(example.target) + 1
            gains.append(1 / np.log2(place + 1) if place <= 10 else 0.0)
        assert chosen["validation_ndcg@10"] == pytest.approx(np.mean(gains), abs=2e-6)


def test_vectors_of_another_catalogue_and_missing_baselines_are_refused(etl: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "word2vec.npy", np.zeros((7, 4), np.float32))
    with pytest.raises(UGTError, match="vectors of 7 items, the catalogue has 120"):
        baselines.run(etl, etl, tmp_path, CONFIG, tmp_path / "out")
    with pytest.raises(UGTError, match="no baselines in"):
        baselines.load(tmp_path / "nothing")
    with pytest.raises(UGTError, match="no SASRec in"):
        sasrec_model.load(tmp_path / "nothing")


SASREC = SasRecConfig(width=16, dropout=0.1, learning_rate=1e-2, epochs=8).like(
    ModelConfig(max_length=6), TrainingConfig(batch_size=16, threads=1, validate_every=2, dense_negatives=0)
)


def task(etl: Path, work: Path) -> dict:
    work.mkdir()
    return {"items": 120, "histories_dir": str(etl), "config": SASREC.model_dump(), "history": HistoryConfig().model_dump(), "work_dir": str(work)}


def test_sasrec_learns_what_keeps_users_together_and_resumes_on_the_same_curve(etl: Path, tmp_path: Path) -> None:
    """Each user of the catalogue keeps to one of four genres: whoever learns that is four times better than chance."""

    class Killed(Exception):
        pass

    def stop(row: dict) -> None:
        if row["epoch"] == 3:
            raise Killed

    sasrec.train(task(etl, tmp_path / "whole"))
    cut = task(etl, tmp_path / "cut")
    with pytest.raises(Killed):
        sasrec.train(cut, stop)
    sasrec.train(cut)
    whole, resumed = (files(tmp_path / name / "result") for name in ("whole", "cut"))
    assert whole[sasrec_model.WEIGHTS] == resumed[sasrec_model.WEIGHTS]
    figures = json.loads(whole["figures.json"])
    rows = [json.loads(line) for line in whole["curve.jsonl"].splitlines()]
    assert figures["validation_ndcg@10"] == max(row["validation"]["score"] for row in rows if "validation" in row)
    assert figures["validation_ndcg@10"] > rows[0]["validation"]["score"]
    model = sasrec_model.load(tmp_path / "whole" / "result")
    split = history_files.load(etl).split()
    scores = model.scores(baselines.histories_before(split, split.users("test"), "test"))
    genre = split.targets(split.users("test"), "test") % 4
    assert (scores.argmax(1) % 4 == genre).mean() > 0.7  # chance is a quarter


def test_sasrec_reads_only_what_came_before(etl: Path) -> None:
    """A state must not change with what follows, and a history longer than the model reads is its last events."""
    import torch

    torch.manual_seed(0)
    model = sasrec_model.SasRec(SASREC, 120).eval()
    items = torch.tensor([[5, 9, 2, 7]])
    with torch.inference_mode():
        changed = items.clone()
        changed[0, 2:] = torch.tensor([80, 81])
        assert torch.allclose(model(items)[:, :3], model(changed)[:, :3], atol=1e-6)
        assert not torch.allclose(model(items)[:, 3], model(changed)[:, 3], atol=1e-3)
    long = np.arange(20)
    assert np.allclose(model.scores([long]), model.scores([long[-6:]]), atol=1e-6)
    alone, beside = model.scores([np.array([3])]), model.scores([np.array([3]), long])
    assert np.allclose(alone[0], beside[0], atol=1e-5)  # padding changes nothing


@pytest.mark.ray
def test_sasrec_on_ray_train_writes_the_bytes_of_a_training_without_it(ray_session: None, etl: Path, tmp_path: Path) -> None:
    config = SASREC.model_copy(update={"epochs": 2})
    figures = sasrec.run(etl, etl, config, tmp_path / "out", tmp_path / "work")
    sasrec.train(task(etl, tmp_path / "here") | {"config": config.model_dump()})
    here = files(tmp_path / "here" / "result")
    assert files(tmp_path / "out").keys() == set(sasrec.FILES)
    assert (tmp_path / "out" / sasrec_model.WEIGHTS).read_bytes() == here[sasrec_model.WEIGHTS]
    assert figures["best_epoch"] == json.loads(here["figures.json"])["best_epoch"]
    assert figures["parameters"] == sum(p.numel() for p in sasrec_model.load(tmp_path / "out").parameters())

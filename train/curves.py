"""Accuracy against diversity: the decoding strategies at several strengths, asked for the same validation users.

Choices: seen items are excluded inside the decode, as in serving. Two heads are measured, because they answer two questions: `curves` is what a strategy
generates, in its own order; `fused` is what is served, after the dense head has had its say. The work is cut into (setting, block of users), which does not
depend on how many actors share it.

Shapes: U users, K = 10 places of a list, N items, A user attributes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ugt import histories as history_files
from ugt import metrics
from ugt.artifacts import write_text
from ugt.histories import HistoryConfig, Split
from ugt.model.config import CurvesConfig, DecodingConfig
from ugt.model.inputs import UserVocabulary
from ugt.schema import Head, UGTError

FILE, FORMAT = "curves.json", 1
K, BLOCK_USERS, BOOTSTRAP = 10, 256, 1000
SHOWN: dict[str, Head] = {"curves": "generative", "fused": "fused"}


class Setting(NamedTuple):
    """A point of a curve: which curve, what is written beside it, how to decode."""

    curve: str
    label: str
    decoding: DecodingConfig


def grid(config: CurvesConfig, decoding: DecodingConfig) -> list[Setting]:
    """The settings to measure, each curve in the order of its strength; the first is the plain beam. All share the beam width of `decoding`."""

    def made(curve: str, label: str, **changes: Any) -> Setting:
        return Setting(curve, label, decoding.model_copy(update=changes))

    settings = [made("beam", "", strategy="beam")]
    settings += [made("diverse_beam", f"{x:g}", strategy="diverse_beam", diversity_penalty=x) for x in config.diversity_penalty]
    for p in config.top_p:
        settings += [made(f"nucleus, top_p {p:g}", f"T {t:g}", strategy="nucleus", top_p=p, temperature=t) for t in config.temperature]
    return settings


class Decoder:
    """Holds the model once and ranks blocks of users: an actor, or an object of this process. Computes with one thread."""

    def __init__(self, checkpoint_dir: Path, semantic_ids_dir: Path, split: Split, rows_U: np.ndarray, codes_UA: np.ndarray, seed: int):
        self.folders, self.split, self.rows_U, self.codes_UA, self.seed = (Path(checkpoint_dir), Path(semantic_ids_dir)), split, rows_U, codes_UA, seed

    @cached_property
    def model(self) -> Any:
        # loaded with the first block, not in __init__: an error then reaches the caller as itself
        import torch

        from ugt.scoring import load_checkpoint

        torch.set_num_threads(1)  # the actors are the parallelism
        return load_checkpoint(*self.folders)

    @cached_property
    def how(self) -> Any:
        from ugt.scoring import load_ranking

        return load_ranking(self.folders[0])

    def rank(self, decoding: DecodingConfig, block_U: np.ndarray) -> dict[Head, np.ndarray]:
        """Item indices [U, K] by each head."""
        from ugt.scoring import rank_users

        asked, codes_UA = self.rows_U[block_U], self.codes_UA[block_U]
        return rank_users(self.model, self.split, asked, "validation", True, codes_UA, K, decoding, self.how, self.seed)


def run(
    histories_dir: Path,
    users_dir: Path,
    semantic_ids_dir: Path,
    checkpoint_dir: Path,
    config: CurvesConfig,
    decoding: DecodingConfig,
    out_dir: Path,
    history: HistoryConfig = HistoryConfig(),
    actors: int | None = None,
) -> dict[str, Any]:
    """Write `curves.json`: `{"format", "protocol", "curves": {name: [point, ...]}, "fused": {the same}}`; docs/evaluation.md names the fields of a point.

    `actors` None: one for every second CPU of the running Ray cluster; 0: in this process, which needs no Ray and gives the same figures. Returns the beam's
    figures. Raises UGTError if nobody has a validation target, or for a checkpoint of another catalogue.
    """
    from ugt.scoring import read_card, user_codes

    started = time.monotonic()
    split = history.apply(history_files.load(histories_dir))
    rows_U = split.users("validation")
    if len(rows_U) == 0:
        raise UGTError(f"no user in {histories_dir} has a validation target under the settings of `histories`. Give a source with longer histories.")
    rows_U = np.sort(np.random.default_rng(config.seed).permutation(rows_U)[: config.users])
    vocabulary = UserVocabulary.from_json(read_card(checkpoint_dir)["vocabulary"])
    codes_UA = user_codes(users_dir, [split.histories.user_ids[u] for u in rows_U], vocabulary)
    settings = grid(config, decoding)
    blocks = [np.arange(start, min(start + BLOCK_USERS, len(rows_U))) for start in range(0, len(rows_U), BLOCK_USERS)]
    calls = [(setting.decoding, block_U) for setting in settings for block_U in blocks]
    answers = list(_answers((checkpoint_dir, semantic_ids_dir, split, rows_U, codes_UA, config.seed), calls, actors))

    vector_ND = np.load(Path(semantic_ids_dir) / "item_vectors.npy")
    target_U, count_N = split.targets(rows_U, "validation"), np.bincount(split.train_events()[1], minlength=len(vector_ND))
    report: dict[str, Any] = {"format": FORMAT, "protocol": _protocol(len(rows_U), config, decoding)}
    for section, head in SHOWN.items():
        lists = [np.concatenate([a[head] for a in answers[i * len(blocks) : (i + 1) * len(blocks)]]) for i in range(len(settings))]
        report[section] = _curves(settings, lists, target_U, count_N, vector_ND, config.seed)
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    write_text(out_dir / FILE, json.dumps(report, indent=1, allow_nan=False))
    beam = report["curves"]["beam"][0]
    return {"users": len(rows_U), "settings": len(settings), **{f"beam_{name}": beam[name] for name in ("recall@10", "diversity@10", "coverage@10")}} | {
        "seconds": round(time.monotonic() - started, 1)
    }


def _answers(parts: tuple[Any, ...], calls: Sequence[tuple[DecodingConfig, np.ndarray]], actors: int | None) -> Iterator[dict[Head, np.ndarray]]:
    """The rankings of each call, in order."""
    if actors == 0:
        decoder = Decoder(*parts)
        return (decoder.rank(*call) for call in calls)
    import ray
    from ray.util import ActorPool

    # half of the CPUs: each actor computes with one thread, and the driver and the store need room
    count = max(1, min(len(calls), actors or int(ray.cluster_resources().get("CPU", 1)) // 2))
    decoder_class = ray.remote(num_cpus=1, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})(Decoder)
    handles = [decoder_class.remote(*(ray.put(p) if isinstance(p, Split) else p for p in parts)) for _ in range(count)]
    try:
        return iter(list(ActorPool(handles).map(lambda actor, call: actor.rank.remote(*call), calls)))
    finally:
        for handle in handles:
            ray.kill(handle)


def _curves(
    settings: Sequence[Setting], lists: Sequence[np.ndarray], target_U: np.ndarray, count_N: np.ndarray, vector_ND: np.ndarray, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """Points by curve, each compared with the first setting over the same users."""
    own = [metrics.ranking_metrics(list_UK, target_U, (K,)) for list_UK in lists]
    curves: dict[str, list[dict[str, Any]]] = {}
    for setting, list_UK, values in zip(settings, lists, own, strict=True):
        point: dict[str, Any] = {"label": setting.label, "decoding": setting.decoding.model_dump(mode="json")}
        point |= {name: float(values[name].mean()) for name in (f"recall@{K}", f"ndcg@{K}")}
        beyond = metrics.beyond_accuracy(list_UK, count_N, vector_ND, (K,))
        point |= {name: beyond[name] for name in (f"coverage@{K}", f"diversity@{K}", f"distinct@{K}", f"novelty@{K}")}
        for name in (f"recall@{K}", f"ndcg@{K}"):
            difference = metrics.paired_difference(values[name], own[0][name], BOOTSTRAP, seed)
            point[f"minus_beam_{name}"] = [difference.low, difference.high]
        curves.setdefault(setting.curve, []).append(point)
    return curves


def _protocol(users: int, config: CurvesConfig, decoding: DecodingConfig) -> dict[str, Any]:
    return {
        "part": "validation",
        "users": users,
        "filtered": True,
        "beam_width": decoding.beam_width,
        "curves": "the generative head's list, in the order of the strategy",
        "fused": "the served page: of the beam, the best of what both heads and memory propose; of another strategy, what it generated, ordered by all of them",
        "minus_beam": f"95%, paired percentile bootstrap over users, {BOOTSTRAP} resamples",
        "seed": config.seed,
    }

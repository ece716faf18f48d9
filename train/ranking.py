"""Rankings of all evaluated users by UGT's heads and every baseline: same histories, same filter, same tie rule, one code path.

Choices: the work is cut into blocks of users that do not depend on how many actors share it, so the same figures come out on any cluster and in one
process. A baseline scores a block once; its filtered list is what remains of the unfiltered one.

Shapes: U users of a block or all, K places of a ranking (-1 where there are fewer), N items, A user attributes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from train import baselines
from train.baselines import histories_before
from ugt.baselines import Ranker, Request
from ugt.evaluation import BASELINES
from ugt.histories import Histories, Split
from ugt.model.config import DecodingConfig
from ugt.schema import HEADS
from ugt.topk import blocked_items, unblocked

BLOCK_USERS, BLOCK_CELLS = 256, 1 << 24  # of one call: users, and users x items, which bounds its memory to a few hundred MB

Rankings = dict[tuple[str, bool], np.ndarray]  # (head or baseline, filtered) -> item indices [U, K]


@dataclass(frozen=True)
class Workload:
    """Users to rank for: rows of `split`, the codes of their attributes and their segments, row for row; which rules and who answers besides the heads."""

    split: Split
    rows_U: np.ndarray
    codes_UA: np.ndarray
    segment_U: np.ndarray
    rules: tuple[bool, ...] = (True, False)  # filtered, unfiltered
    only: tuple[str, ...] | None = None  # of the baselines; None: all

    def of(self, some_U: np.ndarray) -> Workload:
        """Some of the users, by their places here."""
        return replace(self, rows_U=self.rows_U[some_U], codes_UA=self.codes_UA[some_U], segment_U=self.segment_U[some_U])

    @property
    def target_U(self) -> np.ndarray:
        """int64 [U]: the item of each user's held-out event."""
        return self.split.targets(self.rows_U, "test")


@dataclass(frozen=True)
class Sources:
    """The folders the answers come from, and how deep they are asked."""

    checkpoint_dir: Path
    semantic_ids_dir: Path
    baselines_dir: Path
    sasrec_dir: Path | None
    top_k: int
    decoding: DecodingConfig
    seed: int  # of nucleus sampling


class Scorer:
    """Holds the model and the baselines once and ranks blocks of users: an actor, or an object of this process. Computes with one thread."""

    def __init__(self, sources: Sources, rankers: Mapping[str, Ranker], workloads: Mapping[str, Workload]):
        self.sources, self.rankers, self.workloads = sources, rankers, workloads

    @cached_property
    def model(self) -> Any:
        # loaded with the first block, not in __init__: an error then reaches the caller as itself
        import torch

        from ugt.scoring import load_checkpoint

        torch.set_num_threads(1)  # the actors are the parallelism
        return load_checkpoint(self.sources.checkpoint_dir, self.sources.semantic_ids_dir)

    @cached_property
    def how(self) -> Any:
        from ugt.scoring import load_ranking

        return load_ranking(self.sources.checkpoint_dir)

    def rank(self, workload: str, block_U: np.ndarray) -> Rankings:
        """Rankings for a block, by every head and baseline under each rule: `block_U` are places in the workload's rows."""
        from ugt.scoring import rank_users

        work, sources = self.workloads[workload], self.sources
        rows_U, codes_UA = work.rows_U[block_U], work.codes_UA[block_U]
        n_items = len(self.model.semantic_ids)
        ranked: Rankings = {}
        for filtered in work.rules:
            asked = (sources.top_k, sources.decoding, self.how, sources.seed)
            heads = rank_users(self.model, work.split, rows_U, "test", filtered, codes_UA, *asked)
            ranked |= {(head, filtered): items_UK for head, items_UK in heads.items()}
        seen = histories_before(work.split, rows_U, "test")
        blocked_UN = blocked_items(seen, n_items, work.split.targets(rows_U, "test"))
        deep = sources.top_k + int(np.count_nonzero(blocked_UN, axis=1).max(initial=0))
        request = Request(seen, work.segment_U[block_U])
        for name, ranker in self.rankers.items():
            if work.only is None or name in work.only:
                ranking_UK = ranker.rank(request, deep)
                both = {True: unblocked(ranking_UK, blocked_UN, sources.top_k), False: ranking_UK[:, : sources.top_k]}
                ranked |= {(name, filtered): both[filtered] for filtered in work.rules}
        return ranked


def load_rankers(sources: Sources) -> dict[str, Ranker]:
    """The baselines by name, in the order of the table."""
    found = baselines.load(sources.baselines_dir).rankers
    if sources.sasrec_dir is not None:
        from ugt import sasrec

        found["sasrec"] = sasrec.load(sources.sasrec_dir)
    return {name: found[name] for name in BASELINES if name in found}


def rank_all(
    sources: Sources, rankers: Mapping[str, Ranker], workloads: Mapping[str, Workload], n_items: int, actors: int | None = None
) -> dict[str, Rankings]:
    """Rankings of every workload, in the order of its rows.

    `actors` None: one for every second CPU of the running Ray cluster; 0: in this process, which needs no Ray and gives the same rankings.
    """
    # long histories share a block, so little is padded, and go first, so that no actor is left with the longest alone
    lengths = {name: w.split.test_at[w.rows_U] for name, w in workloads.items()}
    calls = [(name, block_U) for name in workloads for block_U in _blocks(np.argsort(-lengths[name], kind="stable"), n_items)]
    if actors == 0:
        answers = _here(Scorer(sources, rankers, workloads), calls)
    else:
        answers = _by_actors((sources, rankers, workloads), calls, actors)
    ranked: dict[str, Rankings] = {name: {} for name in workloads}
    for (name, block_U), answer in zip(calls, answers, strict=True):
        for key, items_UK in answer.items():
            whole = ranked[name].setdefault(key, np.full((len(workloads[name].rows_U), sources.top_k), -1, dtype=np.int64))
            whole[block_U] = items_UK
    order = [(name, filtered) for name in (*HEADS, *BASELINES) for filtered in (True, False)]
    return {name: {key: found[key] for key in order if key in found} for name, found in ranked.items()}


def _here(scorer: Scorer, calls: Sequence[tuple[str, np.ndarray]]) -> list[Rankings]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [scorer.rank(*call) for call in calls]
    finally:
        torch.set_num_threads(threads)


def _by_actors(
    parts: tuple[Sources, Mapping[str, Ranker], Mapping[str, Workload]], calls: Sequence[tuple[str, np.ndarray]], actors: int | None
) -> list[Rankings]:
    import ray
    from ray.util import ActorPool

    sources, *shared = parts
    held = [ray.put(dict(part)) for part in shared]  # once on each machine, however many actors read it
    # half of the CPUs: each actor computes with one thread, and the driver, the store and the other steps' actors need room
    count = max(1, min(len(calls), actors or int(ray.cluster_resources().get("CPU", 1)) // 2))
    scorer = ray.remote(num_cpus=1, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})(Scorer)
    pool = [scorer.remote(sources, *held) for _ in range(count)]
    try:
        return list(ActorPool(pool).map(lambda actor, call: actor.rank.remote(*call), calls))
    finally:
        for actor in pool:
            ray.kill(actor)


def _blocks(order_U: np.ndarray, n_items: int) -> Iterator[np.ndarray]:
    size = max(1, min(BLOCK_USERS, BLOCK_CELLS // n_items))
    for start in range(0, len(order_U), size):
        yield order_U[start : start + size]


def permuted(work: Workload, seed: int) -> Workload:
    """The same targets, each with the history, attributes and moment of another user: nobody keeps the own one. Filtered only, popularity beside the heads."""
    cycle_U = np.random.default_rng(seed).permutation(len(work.rows_U))
    other_U = np.empty_like(cycle_U)
    other_U[cycle_U] = np.roll(cycle_U, 1)
    given = [work.split.example(int(work.rows_U[o]), "test") for o in other_U]
    h = work.split.histories
    lengths_U = np.array([len(e.items) for e in given])
    histories = Histories(
        user_ids=[h.user_ids[u] for u in work.rows_U],
        offsets=np.concatenate([[0], np.cumsum(lengths_U + 1)]).astype(np.int64),
        items=np.concatenate([np.append(e.items, np.int32(t)) for e, t in zip(given, work.target_U, strict=True)]).astype(np.int32),
        # what follows the last event of a history is never read: it stands beside the target
        actions=np.concatenate([np.append(e.actions, np.int32(0)) for e in given]).astype(np.int32),
        values=np.concatenate([np.append(e.values, np.float32(np.nan)) for e in given]).astype(np.float32),
        timestamps=np.concatenate([np.append(e.timestamps, e.target_timestamp) for e in given]).astype(np.int64),
    )
    nobody_U = np.full(len(given), -1)
    split = Split(histories, train_lengths=np.zeros(len(given), np.int64), validation_at=nobody_U, test_at=lengths_U)
    return Workload(split, np.arange(len(given)), work.codes_UA[other_U], work.segment_U[other_U], (True,), ("popularity",))

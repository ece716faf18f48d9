"""A model and requests without data: a generated trie of any size, weights as training begins with them, opinions and biases added.

Choices: groups have the sizes a balanced quantiser leaves (random, at most K3); popularity follows Zipf's law, and the biases of the codes start from it
as in training; the queries of the level heads are scaled so that the scores of codes spread by some nats, as those of a trained model do. The time of a
decode depends on sizes, not on values, so an untrained model is as slow as a trained one.

Shapes: N items, G groups.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from train.export import write_model
from ugt import runtime
from ugt.artifacts import write_text
from ugt.model.config import DecodingConfig, ModelConfig, Precision
from ugt.model.inputs import UserVocabulary
from ugt.model.ugt import UGT
from ugt.runtime import GenerationRequest
from ugt.schema import ACTION_IDS, UGTError
from ugt.scoring import load_checkpoint
from ugt.semantic_ids import SemanticIdConfig, SemanticIds, code_sizes
from ugt.settings import Settings

CONTENT = 16  # width of the generated content vectors; it does not enter the graph
SHARPNESS = 3.0  # by which the level heads' queries are scaled
NOW = 1_700_000_000
MASKS = 64  # different filters the judge's requests use


def semantic_ids(items: int, seed: int) -> SemanticIds:
    """IDs of a generated catalogue, code sizes as for a real one of that size; groups are of random sizes up to K3."""
    k1, k2, k3 = code_sizes(items, SemanticIdConfig())
    rng = np.random.default_rng(seed)
    group_N = np.sort(rng.integers(0, k1 * k2, items))
    for _ in range(1000):  # what overflows a group is drawn again
        third_N = np.arange(items) - np.searchsorted(group_N, group_N)
        over_N = third_N >= k3
        if not over_N.any():
            break
        group_N[over_N] = rng.integers(0, k1 * k2, int(over_N.sum()))
        group_N.sort()
    codes_N3 = np.stack([group_N // k2, group_N % k2, third_N], axis=1)[rng.permutation(items)]
    return SemanticIds.from_codes(codes_N3, [f"i{i}" for i in range(items)], k1, k2, k3)


def model(config: ModelConfig, ids: SemanticIds, seed: int) -> UGT:
    """An untrained UGT with opinions, in evaluation mode."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    made = UGT(config, ids, rng.normal(size=(len(ids), CONTENT)).astype(np.float32), UserVocabulary([], []))
    popularity_N = rng.permutation(1e6 / np.arange(1, len(ids) + 1))
    count_G = np.bincount(made.items.group_N.numpy(), weights=popularity_N, minlength=ids.trie.groups)
    made.level_heads.start_from_counts(torch.from_numpy(count_G).float())
    with torch.no_grad():
        for query in made.level_heads.query:
            query.weight *= SHARPNESS
        made.repeats.group.fill_(-0.3)  # what the history holds counts, as after training
        made.repeats.item.fill_(-0.3)
    return made.eval()


def model_of(settings: Settings, version: str) -> UGT:
    """The trained model behind a version in the registry. Raises UGTError if it or what it was made from is not there, or belongs to another catalogue."""
    from ray_app import serving
    from ray_app.steps import checkpoint

    steps = serving.find(settings, version).steps
    weights = checkpoint(steps)
    if weights is None or "semantic_ids" not in steps:
        raise UGTError(f"version {version} does not say which checkpoint it was made from. Make it again: ugt demo")
    return load_checkpoint(weights, steps["semantic_ids"])


def write_version(made: UGT, folder: Path, precision: Precision = "fp32") -> Path:
    """A folder `ugt.runtime.Generator` can load."""
    folder.mkdir(parents=True, exist_ok=True)
    write_model(made, folder, precision)
    card = {"config": made.config.model_dump(mode="json"), "vocabulary": made.vocabulary.to_json(), "precision": precision}
    write_text(folder / runtime.CARD, json.dumps(card | {"decoding": DecodingConfig().model_dump(mode="json")}))
    return folder


def requests(items: int, count: int, events: int, beam_width: int, seed: int) -> list[GenerationRequest]:
    """Requests with a history of `events`, all of which is excluded."""
    rng = np.random.default_rng(seed)
    return [_request(rng, items, events, beam_width=beam_width) for _ in range(count)]


def judged_requests(items: int, k1: int, max_events: int, beam_width: int, seed: int) -> Iterator[GenerationRequest]:
    """Endless requests of all kinds: any strategy, any length of history, one in three filtered, exclusions of any kind, some with a prior."""
    rng = np.random.default_rng(seed)
    masks = [rng.random(items) < share for share in np.geomspace(1 / items, 1, MASKS)]
    while True:
        extra = rng.integers(0, items, rng.integers(0, 500) if rng.random() < 0.3 else 0).tolist()
        yield _request(
            rng,
            items,
            int(rng.integers(0, max_events + 1)),
            extra,
            beam_width=beam_width,
            strategy=runtime.STRATEGIES[rng.integers(len(runtime.STRATEGIES))],
            allowed=masks[rng.integers(MASKS)] if rng.random() < 1 / 3 else None,
            prior=rng.normal(0, 2, k1).astype(np.float32) if rng.random() < 0.2 else None,
            seed=int(rng.integers(1 << 31)),
            top_p=float(rng.choice([0.0, 0.5, 0.9, 1.0])),
            diversity_penalty=float(rng.choice([0.0, 0.5, 5.0])),
        )


def _request(rng: np.random.Generator, n_items: int, events: int, extra: list[int] | None = None, **more: object) -> GenerationRequest:
    items: list[int] = rng.integers(0, n_items, events).tolist()
    actions: list[int] = rng.choice(sorted(ACTION_IDS.values()), events).tolist()
    values: list[float] = np.where(rng.random(events) < 0.5, rng.integers(1, 11, events) / 2, np.nan).tolist()
    timestamps: list[int] = (NOW - np.sort(rng.integers(0, 10**8, events))[::-1]).tolist()
    return GenerationRequest(items, actions, values, timestamps, NOW, exclude=items + (extra or []), **more)  # type: ignore[arg-type]


def illegal(request: GenerationRequest, result: runtime.GenerationResult, codes_N3: NDArray[np.int32]) -> int:
    """Items of an answer that are not what the request may get: none of the catalogue, under another item's codes, excluded, filtered out, or twice."""
    items = result.item_indices
    exists = (items >= 0) & (items < len(codes_N3))
    known = items[exists]
    wrong = (codes_N3[known] != result.codes[exists]).any(1) | np.isin(known, np.asarray(request.exclude, np.int64))
    if request.allowed is not None:
        wrong |= ~request.allowed[known]
    return int((~exists).sum() + wrong.sum() + len(known) - len(np.unique(known)))

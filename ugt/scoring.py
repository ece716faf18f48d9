"""Checkpoints, and the ranking of many users at once by each head: what validation, evaluation and the export check call.

Choices: model inputs come from `ugt.model.inputs.build_inputs`, candidates from the beam and the dense head, their fusion from `ugt.ranking`: exactly what
is served. Users are taken in order of history length, so a batch holds little padding.

Shapes: U users, W beams, N items, D width.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from ugt.artifacts import USERS, read_table, write_text
from ugt.decoding import Beams, constraints
from ugt.histories import Part, Split
from ugt.insertion import ESTIMATED
from ugt.memory import Memory
from ugt.model.config import DecodingConfig, ModelConfig
from ugt.model.inputs import History, UserVocabulary, build_inputs
from ugt.model.ugt import UGT
from ugt.ranking import Candidates, Fusion, dense_candidates, page, proposals
from ugt.schema import HEADS, DecodingStrategy, Head, UGTError
from ugt.semantic_ids import SemanticIds
from ugt.strategies import search

WEIGHTS, CARD = "model.safetensors", "model.json"
FORMAT, READABLE = 3, (2, 3)  # 2: repeat bias, attributes by name; 3: a memory beside the weights, which may be missing
PAGE = 10  # of the fused list by another strategy than the beam: the cut-off of the headline


class Ranking(NamedTuple):
    """How a checkpoint makes one ranking: chosen on validation and kept with it."""

    fusion: Fusion = Fusion()
    without_memory: Fusion = Fusion()  # the best of the heads alone
    memory: Memory | None = None  # where `fusion` remembers


def catalogue_hash(semantic_ids: SemanticIds) -> str:
    """Digest of item ids and codes: a checkpoint belongs to one catalogue."""
    digest = hashlib.sha256("\n".join(semantic_ids.item_ids).encode())
    digest.update(np.ascontiguousarray(semantic_ids.codes_N3, np.int32).tobytes())
    return digest.hexdigest()[:16]


def new_model(config: ModelConfig, semantic_ids_dir: Path, vocabulary: UserVocabulary) -> UGT:
    """An untrained UGT over the catalogue of a semantic IDs folder. Raises UGTError if `cold_share` asks for estimated vectors and there are none."""
    semantic_ids_dir = Path(semantic_ids_dir)
    estimated, estimated_NV = semantic_ids_dir / ESTIMATED, None
    if config.cold_share > 0:
        if not estimated.is_file():
            raise UGTError(f"model.cold_share needs {ESTIMATED}, which {semantic_ids_dir} lacks. Set semantic_ids.estimate to true, or model.cold_share to 0.")
        estimated_NV = np.load(estimated)
    return UGT(config, SemanticIds.load(semantic_ids_dir), np.load(semantic_ids_dir / "item_vectors.npy"), vocabulary, estimated_NV)


def save_checkpoint(model: UGT, folder: Path, how: Ranking, **card: Any) -> None:
    """`model.safetensors`, `memory.npz` (if it is used) and `model.json` (sizes, config, vocabulary, catalogue hash, fusion, and what is given), the first and
    the last written aside and renamed: a folder with a card is whole."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if how.memory is not None:
        how.memory.save(folder)
    aside = folder / f"{WEIGHTS}.{os.getpid()}.tmp"
    save_file({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}, aside)
    os.replace(aside, folder / WEIGHTS)
    about = {
        "format": FORMAT,
        "config": model.config.model_dump(mode="json"),
        "vocabulary": model.vocabulary.to_json(),
        "catalogue": catalogue_hash(model.semantic_ids),
        "items": len(model.semantic_ids),
        "codes": [model.items.k1, model.items.k2, model.items.k3],
        "parameters": sum(p.numel() for p in model.parameters()),
        "fusion": vars(how.fusion),
        "without_memory": vars(how.without_memory),
    }
    write_text(folder / CARD, json.dumps(about | card, indent=1))


def read_card(folder: Path) -> dict[str, Any]:
    """`model.json` of a checkpoint. Raises UGTError if it is not there or of another format."""
    path = Path(folder) / CARD
    try:
        card = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UGTError(f"no checkpoint in {folder} ({CARD} is missing). Run `ugt train ugt` first.") from error
    if card.get("format") not in READABLE:
        raise UGTError(f"{path} has format {card.get('format')}, this version reads {' and '.join(map(str, READABLE))}. Train again with `ugt train ugt`.")
    return card


def load_checkpoint(folder: Path, semantic_ids_dir: Path) -> UGT:
    """A trained UGT, ready to answer (eval mode). Raises UGTError if the checkpoint was trained on another catalogue."""
    card = read_card(folder)
    model = new_model(ModelConfig(**card["config"]), semantic_ids_dir, UserVocabulary.from_json(card["vocabulary"]))
    if card["catalogue"] != catalogue_hash(model.semantic_ids):
        raise UGTError(
            f"the checkpoint in {folder} was trained on another catalogue ({card['items']:,} items, {card['catalogue']}) than the semantic IDs in "
            f"{semantic_ids_dir} ({len(model.semantic_ids):,} items, {catalogue_hash(model.semantic_ids)}). "
            "Train again, or give the semantic IDs it was trained with."
        )
    model.load_state_dict(load_file(Path(folder) / WEIGHTS))
    return model.eval()


def load_ranking(folder: Path) -> Ranking:
    """Raises UGTError if there is no checkpoint, or if the memory that it ranks with is missing."""
    card = read_card(folder)
    fusion = Fusion(**card["fusion"])
    return Ranking(fusion, Fusion(**card.get("without_memory", card["fusion"])), Memory.load(folder) if fusion.remembers else None)


def user_codes(users_dir: Path, user_ids: Sequence[str], vocabulary: UserVocabulary) -> NDArray[np.int64]:
    """Codes of the attributes of users, one row for each, in the order given; 0 for a user or value that is not known. `users_dir` holds the USERS table."""
    known = {row["user_id"]: row for row in read_table(Path(users_dir), USERS).to_pylist()}
    codes = [vocabulary.codes(known.get(user_id)) for user_id in user_ids]
    return np.array(codes, dtype=np.int64).reshape(len(user_ids), len(vocabulary.sizes))


def tensors(inputs: Mapping[str, NDArray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in inputs.items()}


@torch.inference_mode()
def decode(
    model: UGT,
    histories: Sequence[History],
    now: Sequence[int],
    user_BU: NDArray,
    exclude: Sequence[NDArray],
    decoding: DecodingConfig,
    seeds: Sequence[int] | None = None,
) -> Beams:
    """Items of B requests in PyTorch. `seeds` are those of nucleus sampling, one per request; 0, 1, ... if not given."""
    inputs = tensors(build_inputs(histories, now, user_BU, model.config.max_length))
    tables = model.tables()
    state_BTD = model.encode(inputs, tables)
    seeds = range(len(histories)) if seeds is None else seeds
    return search(model, state_BTD, inputs["length_B"], inputs["context_B"], tables, constraints(model, exclude, read_BL=inputs["item_BL"]), decoding, seeds)


def pages(given: Candidates, fusion: Fusion, k: int, strategy: DecodingStrategy) -> NDArray[np.int64]:
    """A list of k as pages of PAGE one after the other, so that its first ten are the page of ten whatever k is. For the beam this is the list itself."""
    if strategy == "beam":
        return page(strategy, given, fusion, k)[0]
    items = np.empty(0, np.int64)
    for end in (*range(PAGE, k, PAGE), k):
        longer = page(strategy, given, fusion, end)[0]
        items = np.concatenate([items, longer[~np.isin(longer, items)]])
    return items


def candidates(
    model: UGT,
    split: Split,
    users: NDArray,
    part: Part,
    filtered: bool,
    user_UA: NDArray,
    count: int,
    decoding: DecodingConfig,
    memory: Memory | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> list[Candidates]:
    """Each user's candidates, row for row of `users`; see `rank_users`. At most `count` of the dense head, `decoding.beam_width` of the generative one, and
    what `memory` proposes, if it is given."""
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        item_ND, repeat = model.tables().item_ID[1:].numpy(), np.float32(model.repeats.of_dense)
    examples = [split.example(int(u), part) for u in users]
    # the target stays rankable even if it was seen before: it is the answer
    forbidden = [np.setdiff1d(e.items, [e.target]) if filtered else np.empty(0, np.int64) for e in examples]
    found: dict[int, Candidates] = {}
    order = np.argsort([len(e.items) for e in examples], kind="stable")
    for start in range(0, len(users), batch_size):
        rows = order[start : start + batch_size]
        batch = [examples[r] for r in rows]
        histories = [History(e.items, e.actions, e.values, e.timestamps) for e in batch]
        # a user's sample follows from the seed and the user, not from who else is in the batch
        seeds = [(seed << 32) + int(users[r]) for r in rows]
        beams = decode(model, histories, [e.target_timestamp for e in batch], user_UA[rows], [forbidden[r] for r in rows], decoding, seeds)
        for i, row in enumerate(rows):
            live = (beams.item_BW[i] >= 0).numpy()
            items, log_probs, user_D = beams.item_BW[i].numpy()[live], beams.log_prob_BW[i].numpy()[live], beams.user_BD[i].numpy()
            read = np.unique(batch[i].items[-model.config.max_length :])

            def logits(items: NDArray, user_D: NDArray = user_D, read: NDArray = read) -> NDArray:
                return item_ND[items] @ user_D + repeat * np.isin(items, read)

            given = Candidates(items, log_probs, logits(items), *dense_candidates(user_D, item_ND, count, forbidden[row], read, repeat))
            if memory is not None:
                recall = memory.recall(batch[i].items)
                proposed = proposals(recall)
                given = given._replace(recall=recall, proposed=proposed, dense_of_proposed=logits(proposed))
            found[int(row)] = given
    model.train(was_training)
    return [found[row] for row in range(len(users))]


def rank_users(
    model: UGT,
    split: Split,
    users: NDArray,
    part: Part,
    filtered: bool,
    user_UA: NDArray,
    top_k: int = 50,
    decoding: DecodingConfig | None = None,
    how: Ranking = Ranking(),
    seed: int = 0,
    batch_size: int = 64,
) -> dict[Head, NDArray[np.int64]]:
    """Ranking of each user by each head of HEADS: item indices [U, top_k], -1 where there are fewer.

    `users` are rows of the split that are evaluated; `user_UA` are the codes of those users' attributes (`user_codes`), row for row. `filtered` removes
    the user's seen items except the target before the top is taken. The request is made at the moment of the target event. The generative ranking is in the
    order of the decoding strategy; `seed` is of nucleus sampling. `how` is the checkpoint's (`load_ranking`).
    """
    decoding = decoding or DecodingConfig()
    found = candidates(model, split, users, part, filtered, user_UA, max(top_k, decoding.beam_width), decoding, how.memory, seed, batch_size)
    ranked: dict[Head, NDArray[np.int64]] = {head: np.full((len(users), top_k), -1, np.int64) for head in HEADS}
    for row, c in enumerate(found):
        fused, alone = (pages(c, fusion, top_k, decoding.strategy) for fusion in (how.fusion, how.without_memory))
        mine: dict[Head, NDArray] = {"fused": fused, "without_memory": alone, "generative": c.items[:top_k], "dense": c.dense_items[:top_k]}
        for head, items in mine.items():
            ranked[head][row, : len(items)] = items
    return ranked

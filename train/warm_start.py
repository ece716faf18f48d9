"""Warm start: a new catalogue's model begins with what an earlier checkpoint knows.

Choices: an item that both know keeps its vector, found by item id: its free embedding becomes whatever the codes and the projection of the new model
leave to it, so that everything that reads item vectors goes on as before, even if the codes are others. Code embeddings, code biases and the projection
are carried only if the codebooks are the same; otherwise a code, and a content vector, mean something else. A new item starts as in a new model.

Shapes: N items of the new catalogue, S shared by both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from ugt.model.config import ModelConfig
from ugt.model.inputs import UserVocabulary
from ugt.model.ugt import UGT
from ugt.schema import UGTError
from ugt.scoring import WEIGHTS, new_model, read_card
from ugt.semantic_ids import SemanticIds

CODEBOOKS, VECTORS, TABLE, FOLDER = "codebooks.npz", "item_vectors.npy", "semantic_ids.parquet", "checkpoint"
OF_CODES = ("items.codes.", "items.project.", "level_heads.first_bias_K", "level_heads.group_bias_G")
OF_ITEMS = "items.free.weight"


def place(given: Path) -> Path:
    """The folder of weights in a checkpoint or an exported version. Raises UGTError naming what is missing."""
    folder = given / FOLDER if (given / FOLDER).is_dir() else given
    missing = [name for name in (WEIGHTS, TABLE) if not (folder / name).is_file()]
    if missing or not _vectors(folder).is_file():
        raise UGTError(
            f"{given} holds no weights to start from ({', '.join(missing) or VECTORS} is missing). "
            "Give a version that was exported with its checkpoint, or the folder of a training stage."
        )
    return folder


def start(given: Path, config: ModelConfig, semantic_ids_dir: Path) -> tuple[UGT, dict[str, Any]]:
    """A model over the catalogue of `semantic_ids_dir` that begins with the weights of a checkpoint or version, and what was carried over and what not.

    Raises UGTError if the sizes of the model differ.
    """
    folder = place(Path(given))
    card, before = read_card(folder), SemanticIds.load(folder)
    old = ModelConfig(**card["config"])
    sizes = ("width", "encoder_layers", "decoder_layers", "max_length", "feed_forward", "experts", "expert_width", "shared_expert")
    changed = [name for name in sizes if getattr(old, name) != getattr(config, name)]
    if changed:
        told = ", ".join(f"{name} {getattr(old, name)}, now {getattr(config, name)}" for name in changed)
        raise UGTError(f"the weights in {given} are of a model of other sizes: {told}. Set model.* as they were, or train without --from.")
    model = new_model(config, semantic_ids_dir, UserVocabulary.from_json(card["vocabulary"]))
    same_codes = _same_codebooks(folder, Path(semantic_ids_dir))
    weights, state = load_file(folder / WEIGHTS), model.state_dict()
    fresh = sorted(name for name in state if name != OF_ITEMS and (name not in weights or weights[name].shape != state[name].shape))
    fresh += [name for name in state if name.startswith(OF_CODES) and name not in fresh and not same_codes]
    carried = [name for name in state if name not in fresh and name != OF_ITEMS]
    model.load_state_dict(state | {name: weights[name] for name in carried})
    shared = [(model.semantic_ids.index[item], i) for i, item in enumerate(before.item_ids) if item in model.semantic_ids.index]
    vectors_ND = np.load(_vectors(folder))
    with torch.no_grad():
        new_S, old_S = (torch.tensor([pair[side] for pair in shared], dtype=torch.int64) for side in (0, 1))
        wanted_SD = torch.from_numpy(vectors_ND)[old_S].float()
        model.items.free.weight[new_S] += wanted_SD - model.tables().item_ID[1:][new_S]
    return model, {
        "items_carried": len(shared),
        "items_new": len(model.semantic_ids) - len(shared),
        "items_gone": len(before) - len(shared),
        "codes_carried": same_codes,
        "weights_carried": len(carried),
        "weights_new": fresh,
    }


def _vectors(folder: Path) -> Path:
    return folder / VECTORS if (folder / VECTORS).is_file() else folder.parent / VECTORS


def _same_codebooks(folder: Path, semantic_ids_dir: Path) -> bool:
    paths = (folder / CODEBOOKS, semantic_ids_dir / CODEBOOKS)
    if not all(path.is_file() for path in paths):
        return False
    old, new = (dict(np.load(path)) for path in paths)
    return old.keys() == new.keys() and all(np.array_equal(old[name], new[name]) for name in old)

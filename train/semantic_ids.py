"""Semantic IDs of a catalogue: join the vectors, fit the codebooks, name every item.

Choices: with `semantic_ids.workers` above one the fit is a Ray Train run, RQ-VAE as DDP, residual k-means as Lloyd steps on shares of the rows. One worker
fits in the step's own process: a Train run takes some seconds to start, which a small catalogue's whole fit does not.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
import torch.distributed as dist
from threadpoolctl import threadpool_limits

from train import trainer
from ugt.artifacts import ITEMS, read_table, write_text
from ugt.fusion import VectorSpace, principal_axes
from ugt.insertion import ESTIMATED
from ugt.kmeans import ALONE, Group
from ugt.new_vectors import COLLABORATIVE, NewVectors
from ugt.quantizer import Codebooks, fit_residual_kmeans, localise, quantise
from ugt.schema import UGTError
from ugt.semantic_ids import CONTENT, SemanticIdConfig, SemanticIds, code_sizes


def run(etl_dir: Path, fusion_dir: Path | None, word2vec_dir: Path, config: SemanticIdConfig, out_dir: Path, text_dir: Path | None = None) -> dict[str, Any]:
    """Write `semantic_ids.parquet`, `codebooks.npz`, `vector_space.npz`, `health.json`, `item_vectors.npy` (float32 [N, D], what was quantised),
    `content_vectors.npy` (their parts of content) and, where the config asks for it, `estimated_vectors.npy` (the same as if each item were new).

    The vector space joins, in this order, those of fused, text, word2vec and co-occurrence vectors whose weight is above 0; the axes of text are in
    `text_axes.npy`. Without text vectors (`text_dir` None) their weight counts for nothing. Figures are the health report. Raises UGTError if the vectors are
    not those of this catalogue.
    """
    items = read_table(etl_dir / "items", ITEMS).sort_by("item_index")
    folders = {"fused": fusion_dir, "text": text_dir, "word2vec": word2vec_dir, "cooccurrence": word2vec_dir}
    blocks = {name: np.load(folder / f"{name}.npy") for name in config.blocks(text_dir is not None) if (folder := folders[name]) is not None}
    if any(len(block) != items.num_rows for block in blocks.values()):
        sizes = ", ".join(f"{len(block):,} {name}" for name, block in blocks.items())
        raise UGTError(f"semantic_ids: {items.num_rows:,} items, but vectors of {sizes}. Run the steps before again.")
    if "text" in blocks:
        with threadpool_limits(config.threads):
            axes_TW = principal_axes(blocks["text"], config.text_width)
            blocks["text"] = blocks["text"].astype(np.float32) @ axes_TW
        np.save(out_dir / "text_axes.npy", axes_TW)
    space = VectorSpace.fit(list(blocks.values()), [getattr(config, f"{name}_weight") for name in blocks])
    k1, k2, k3 = code_sizes(items.num_rows, config)
    # sums of BLAS depend on how many threads share them
    with threadpool_limits(config.threads):
        x_ND = space.join(list(blocks.values()))
        alone = config.workers == 1
        codebooks = fit(x_ND, (k1, k2, k3), config) if alone else fit_distributed(x_ND, (k1, k2, k3), config, out_dir / "fit")
        key_N = None
        if config.third == "popularity":
            # votes decide where nothing was seen: a catalogue without events still has an order
            votes_N = pc.fill_null(items.column("votes"), 0).to_numpy().astype(np.float64)
            key_N = np.load(word2vec_dir / "train_counts.npy") + votes_N / (1 + votes_N.max())
        codes_N3, shares = quantise(x_ND, codebooks, k3, config.balance, key_N)
    ids = SemanticIds.from_codes(codes_N3, items.column("item_id").to_pylist(), k1, k2, k3, config.spare)
    ids.save(out_dir)
    codebooks.save(out_dir / "codebooks.npz")
    space.save(out_dir / "vector_space.npz")
    np.save(out_dir / "item_vectors.npy", x_ND)
    np.save(out_dir / CONTENT, space.part(x_ND, [name not in COLLABORATIVE for name in blocks]))
    if config.estimate:
        with threadpool_limits(config.threads):
            new = NewVectors.load(config, out_dir, word2vec_dir, text_dir, fusion_dir)
            np.save(out_dir / ESTIMATED, new.of_catalogue(blocks.get("fused")))
    health = ids.health() | shares | {"method": config.method, "width": x_ND.shape[1]}
    write_text(out_dir / "health.json", json.dumps(health, indent=1))
    return health


def fit(x_ND: np.ndarray, sizes: tuple[int, int, int], config: SemanticIdConfig, group: Group = ALONE) -> Codebooks:
    """The codebooks of item vectors, by the method of the config; `sizes` are (K1, K2, K3). The workers of `group` share the work."""
    k1, k2, k3 = sizes
    if config.method == "rq_vae":
        from ugt.rq_vae import fit_rq_vae

        parallel = group.parallel if isinstance(group, TorchGroup) else _alone
        codebooks = fit_rq_vae(x_ND, k1, k2, config.rq_vae_width, config.rq_vae_epochs, config.seed, config.threads, group, parallel)
    else:
        codebooks = fit_residual_kmeans(x_ND, k1, k2, config.iterations, config.seed, config.balance, group)
    return localise(x_ND, codebooks, k3, config.balance, config.local_steps, group)


def fit_distributed(x_ND: np.ndarray, sizes: tuple[int, int, int], config: SemanticIdConfig, work_dir: Path) -> Codebooks:
    """`fit` by `config.workers` workers of a Ray Train run; the same codebooks to rounding. `work_dir` must be seen by all of them, and is emptied.

    One worker would give the codebooks of `fit` to the bit, some seconds later: those that a Train run takes to start.
    """
    shutil.rmtree(work_dir, ignore_errors=True)
    work_dir.mkdir(parents=True)
    np.save(work_dir / "x.npy", x_ND)
    task = {"work_dir": str(work_dir.absolute()), "sizes": sizes, "config": config.model_dump()}
    trainer.run(_worker, task, "semantic-ids", work_dir, workers=config.workers, cpus=config.threads)
    codebooks = Codebooks.load(work_dir / "codebooks.npz")
    shutil.rmtree(work_dir)
    return codebooks


def _worker(task: dict[str, Any]) -> None:
    import ray.train

    work_dir, config, group = Path(task["work_dir"]), SemanticIdConfig(**task["config"]), TorchGroup()
    with threadpool_limits(config.threads):
        codebooks = fit(np.load(work_dir / "x.npy", mmap_mode="r"), tuple(task["sizes"]), config, group)
    if group.rank == 0:
        codebooks.save(work_dir / "aside.npz")
        (work_dir / "aside.npz").replace(work_dir / "codebooks.npz")
    ray.train.report({"workers": group.size})


def _alone(module: torch.nn.Module) -> torch.nn.Module:
    return module


class TorchGroup:
    """The workers of a running torch.distributed, over gloo: what they exchange is in main memory."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._gloo = dist.new_group(backend="gloo")

    def sum(self, x: np.ndarray) -> np.ndarray:
        total = torch.from_numpy(np.array(x))
        dist.all_reduce(total, group=self._gloo)
        return total.numpy()

    def gather(self, x: np.ndarray) -> np.ndarray:
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, x, group=self._gloo)
        return np.concatenate(parts)

    def parallel(self, module: torch.nn.Module) -> torch.nn.Module:
        """The module with its gradients averaged over the workers."""
        return torch.nn.parallel.DistributedDataParallel(module, process_group=self._gloo)

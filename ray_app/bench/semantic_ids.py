"""`ugt bench semantic-ids`: semantic IDs of a large generated catalogue beside faiss' residual quantiser, and new items beside those of the fit.

Choices: vectors from `ugt.synthetic_vectors` (clusters of Zipf sizes, not white noise); our side is the step's own code (`train.semantic_ids.fit`,
`ugt.quantizer.quantise`). faiss gets the same K1 and K2, the same sampling rule and threads, and is otherwise at its defaults (progressive k-means, beam
of 5); its greedy codes are in the report too. Ours has what faiss' has not: a capacity a code, and a second codebook
of its own for each L1 code. Neighbours are exact (`faiss.IndexFlatL2`).

Shapes: N items, M new items, Q queries, D width, B neighbours.
"""

from __future__ import annotations

import time
from typing import Any

import faiss
import numpy as np
from threadpoolctl import threadpool_limits

from ray_app.bench.decode import Say
from ray_app.report import Usage, host
from train.semantic_ids import fit
from ugt.kmeans import nearest, sampled
from ugt.quantizer import Codebooks, quantise
from ugt.semantic_ids import Insertion, SemanticIdConfig, SemanticIds, code_sizes
from ugt.synthetic_vectors import clustered_vectors

NEIGHBOURS = 10
QUERIES = 4096  # of each kind, or a tenth of the items if those are fewer: the share's standard error is then about half a point
BLOCK = 65_536


def run(items: int = 1_000_000, width: int = 256, seed: int = 0, threads: int = 2, say: Say = print) -> dict[str, Any]:
    """The report. Deterministic in its codes under `seed` with one thread."""
    config = SemanticIdConfig(threads=threads, seed=seed)
    sizes, queries = code_sizes(items, config), min(QUERIES, items // 10)
    rng = np.random.default_rng(seed + 1)
    with threadpool_limits(threads):
        faiss.omp_set_num_threads(threads)
        made_ND, cluster_N = clustered_vectors(items + queries, width, seed)
        x_ND, new_MD = made_ND[:items], made_ND[items:]
        popularity_N = rng.zipf(1.5, items).astype(np.float64)
        say(f"{items:,} x {width} made, {len(np.unique(cluster_N)):,} clusters; codes {' x '.join(str(k) for k in sizes)}")
        ids, codebooks, ours = _ours(x_ND, popularity_N, sizes, config)
        say(f"ours: {ours['seconds']} s, error {ours['error']:.4f}, overflow {ours['overflow']:.2%}, peak {ours['peak_rss_gb']} GB")
        theirs, their_codes = _faiss(x_ND, sizes, config)
        say(f"faiss: {theirs['seconds']} s, error {theirs['beam']['error']:.4f} (greedy {theirs['greedy']['error']:.4f})")
        ask_Q = np.sort(rng.choice(items, queries, replace=False))
        near_QB, near_MB = _neighbours(x_ND, x_ND[ask_Q], ask_Q), _neighbours(x_ND, new_MD, None)
        ours |= _agreement(ids.codes_N3, near_QB, ids.codes_N3[ask_Q])
        for name, codes_N2 in their_codes.items():
            theirs[name] |= _agreement(codes_N2, near_QB, codes_N2[ask_Q])
        new = _new_items(ids, codebooks, new_MD, near_MB, ours)
    beam, greedy = theirs["beam"], theirs["greedy"]
    say(f"L1 shared with a neighbour: ours {ours['l1_agreement']:.1%}, faiss {beam['l1_agreement']:.1%} (greedy {greedy['l1_agreement']:.1%})")
    say(f"new items: {new['ms_p50']} ms, p99 {new['ms_p99']} ms each; same L1 as a neighbour {new['l1_agreement']:.1%}, of the fit {ours['l1_agreement']:.1%}")
    return {
        "items": items,
        "width": width,
        "codes": list(sizes),
        "seconds": ours["seconds"],
        "collisions": ours["health"]["collisions"],
        "error_ratio": round(ours["error"] / beam["error"], 4),
        "l1_agreement_difference": round(ours["l1_agreement"] - beam["l1_agreement"], 4),
        "ours": ours,
        "faiss": theirs,
        "new_items": new,
        "queries": queries,
        "threads": threads,
        "seed": seed,
        "host": host(),
    }


def _ours(x_ND: np.ndarray, key_N: np.ndarray, sizes: tuple[int, int, int], config: SemanticIdConfig) -> tuple[SemanticIds, Codebooks, dict[str, Any]]:
    """Fit, name every item, build the trie: what the step does after the vectors are joined."""
    with Usage() as usage:
        start = time.perf_counter()
        codebooks = fit(x_ND, sizes, config)
        fitted = time.perf_counter()
        codes_N3, shares = quantise(x_ND, codebooks, sizes[2], config.balance, key_N)
        ids = SemanticIds.from_codes(codes_N3, [f"tt{i:08d}" for i in range(len(x_ND))], *sizes, config.spare)
        end = time.perf_counter()
    left = (x_ND[s] - codebooks.l1_KD[c[:, 0]] - codebooks.l2_KKD[c[:, 0], c[:, 1]] for s, c in _blocks(codes_N3))
    health = ids.health()
    figures = {"seconds": round(end - start, 1), "fit_seconds": round(fitted - start, 1), "quantise_seconds": round(end - fitted, 1), "error": _mean(left)}
    return ids, codebooks, figures | shares | {"l1_perplexity": health["l1_perplexity"], "peak_rss_gb": round(usage.peak_gb, 2), "health": health}


def _faiss(x_ND: np.ndarray, sizes: tuple[int, int, int], config: SemanticIdConfig) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """faiss' residual quantiser on the same vectors: figures, and the codes [N, 2] by kind of search."""
    bits = [k.bit_length() - 1 for k in sizes[:2]]  # powers of two, as faiss wants them: `code_sizes` gives no others
    sizes_in_bits: Any = faiss.UInt64Vector()  # a plain list, which faiss' type hints ask for, is refused by its wrapper
    for size in bits:
        sizes_in_bits.push_back(size)
    quantiser = faiss.ResidualQuantizer(x_ND.shape[1], sizes_in_bits)
    quantiser.cp.seed = 1 + config.seed
    figures: dict[str, Any] = {"version": faiss.__version__, "train_iterations": quantiser.cp.niter, "beam_size": quantiser.max_beam_size}
    found: dict[str, np.ndarray] = {}
    with Usage() as usage:
        start = time.perf_counter()
        train_MD = np.ascontiguousarray(sampled(x_ND, sizes[0], np.random.default_rng(config.seed)))
        quantiser.train(train_MD)
        figures |= {"trained_on": len(train_MD), "train_seconds": round(time.perf_counter() - start, 1)}
        for kind, beam in (("beam", quantiser.max_beam_size), ("greedy", 1)):
            quantiser.max_beam_size = beam
            encoding = time.perf_counter()
            packed = [quantiser.compute_codes(x_ND[s]) for s, _ in _blocks(x_ND)]
            seconds = round(time.perf_counter() - encoding, 1)
            codes_N2 = np.concatenate([faiss.unpack_bitstrings(block, np.array(bits, np.int32)) for block in packed])
            left = (x_ND[s] - quantiser.decode(block) for (s, _), block in zip(_blocks(x_ND), packed, strict=True))
            figures[kind] = {"encode_seconds": seconds, "error": _mean(left), "l1_perplexity": round(_perplexity(codes_N2[:, 0]), 2)}
            found[kind] = codes_N2
    return figures | {"seconds": round(figures["train_seconds"] + figures["beam"]["encode_seconds"], 1), "peak_rss_gb": round(usage.peak_gb, 2)}, found


def _blocks(x_NX: np.ndarray) -> list[tuple[slice, np.ndarray]]:
    return [(slice(i, i + BLOCK), x_NX[i : i + BLOCK]) for i in range(0, len(x_NX), BLOCK)]


def _mean(left: Any) -> float:
    """Mean over items of the squared length of what is left."""
    sums = [(float((block.astype(np.float64) ** 2).sum()), len(block)) for block in left]
    return round(sum(s for s, _ in sums) / sum(n for _, n in sums), 6)


def _perplexity(code_N: np.ndarray) -> float:
    share = np.bincount(code_N.astype(np.int64)) / len(code_N)
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def _neighbours(x_ND: np.ndarray, query_QD: np.ndarray, own_Q: np.ndarray | None) -> np.ndarray:
    """The nearest items of each query by exact search, int64 [Q, NEIGHBOURS]; `own_Q`, the query's own row, is no neighbour."""
    index = faiss.IndexFlatL2(x_ND.shape[1])
    best: list[tuple[np.ndarray, np.ndarray]] = []
    for s, block in _blocks(x_ND):  # no second copy of the whole matrix
        index.reset()
        index.add(block)
        distance_QB, row_QB = index.search(query_QD, min(NEIGHBOURS + 1, len(block)))
        best.append((distance_QB, row_QB + s.start))
    distance_QX, row_QX = (np.concatenate(parts, axis=1) for parts in zip(*best, strict=True))
    if own_Q is not None:
        distance_QX = np.where(row_QX == own_Q[:, None], np.inf, distance_QX)
    return np.take_along_axis(row_QX, np.argsort(distance_QX, axis=1, kind="stable")[:, :NEIGHBOURS], 1)


def _agreement(codes_NX: np.ndarray, near_QB: np.ndarray, codes_QX: np.ndarray) -> dict[str, float]:
    """Share of the neighbours with the query's L1, and with its L1 and L2."""
    same_QB2 = codes_NX[near_QB][..., :2] == codes_QX[:, None, :2]
    return {"l1_agreement": round(float(same_QB2[..., 0].mean()), 4), "l1_l2_agreement": round(float(same_QB2.all(-1).mean()), 4)}


def _new_items(ids: SemanticIds, codebooks: Codebooks, new_MD: np.ndarray, near_MB: np.ndarray, trained: dict[str, Any]) -> dict[str, Any]:
    """Items that were not in the fit, one after another by the insertion path."""
    insertion, times, cpu_times = Insertion(ids, codebooks), [], []
    ids.index  # noqa: B018  # built at the first look-up of an id, for the table's whole life
    with threadpool_limits(1):  # a product of this size gains nothing by a second thread
        for i, vector_D in enumerate(new_MD):
            start, cpu = time.perf_counter(), time.thread_time()
            insertion.assign(f"new{i:07d}", vector_D)
            times.append((time.perf_counter() - start) * 1e3)
            cpu_times.append((time.thread_time() - cpu) * 1e3)
    start = time.perf_counter()
    grown = insertion.grown()
    table_ms = (time.perf_counter() - start) * 1e3
    codes_M3 = grown.codes_N3[len(ids) :]
    agreement = _agreement(ids.codes_N3, near_MB, codes_M3)
    return agreement | {
        "items": len(new_MD),
        "ms_p50": round(float(np.percentile(times, 50)), 3),
        "ms_p99": round(float(np.percentile(times, 99)), 3),
        "cpu_ms_p99": round(float(np.percentile(cpu_times, 99)), 3),
        "table_ms": round(table_ms, 1),
        "nearest_l1": round(float((nearest(new_MD, codebooks.l1_KD) == codes_M3[:, 0]).mean()), 4),
        "collisions": grown.health()["collisions"],
        "l1_agreement_difference": round(agreement["l1_agreement"] - trained["l1_agreement"], 4),
        "l1_l2_agreement_difference": round(agreement["l1_l2_agreement"] - trained["l1_l2_agreement"], 4),
    }

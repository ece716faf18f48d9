"""Generator: the constrained decode of one model version in ONNX Runtime, requests batched as they come."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray import serve

from serve.logs import logger
from serve.metrics import GeneratorMetrics
from serve.versions import StaleVersionError, VersionSource
from ugt.model.config import DecodingConfig
from ugt.providers import ExecutionProvider
from ugt.runtime import STRATEGIES, GenerationRequest
from ugt.runtime import Generator as Runtime
from ugt.schema import DecodingStrategy

MAX_BATCH = 16


@dataclass(frozen=True)
class Generation:
    """What to decode: one user's history (item_index, oldest first) and what may not or must come out."""

    version: str
    items: list[int]
    actions: list[int]
    values: list[float]
    timestamps: list[int]
    now: int
    user: dict[str, Any]
    exclude: list[int]
    filter_key: tuple[tuple[str, ...], tuple[str, ...]]
    strategy: DecodingStrategy | None = None  # None: the version's own
    seed: int = 0  # of nucleus sampling
    prior: np.ndarray | None = None  # added to the logits of L1, [K1]


@dataclass(frozen=True)
class Generated:
    """In the order of the strategy: item_index [W], log-probability [W]; the user vector [D] of the dense head; milliseconds inside the replica."""

    items: np.ndarray
    log_probs: np.ndarray
    user_vector: np.ndarray
    milliseconds: float
    strategy: DecodingStrategy


@serve.deployment
class Generator:
    def __init__(self, source: VersionSource, threads: int = 1, provider: ExecutionProvider = "cpu"):
        self._source, self._threads, self._provider = source, threads, provider
        self._version = ""
        self._pool = ThreadPoolExecutor(1, "onnx")  # one batch at a time: the next one gathers meanwhile
        self._metrics = GeneratorMetrics()
        self._log = logger("Generator")

    def reconfigure(self, user_config: dict[str, str]) -> None:
        """Load the version named by `user_config`; called at start and when the configuration changes. The old one answers until then."""
        start = time.monotonic()
        folder = self._source.folder(user_config["version"])
        runtime = Runtime(folder, threads=self._threads, provider=self._provider)
        catalogue = self._source.catalogue(folder)
        self._runtime, self._catalogue, self._version = runtime, catalogue, user_config["version"]
        self._decoding = DecodingConfig(**runtime.card["decoding"])
        self._decode([self._warm_up(strategy) for strategy in STRATEGIES])  # the first run of a graph allocates; it must not cost a request its budget
        self._log.info("version loaded", version=self._version, seconds=round(time.monotonic() - start, 2))

    def check_health(self) -> None:
        if not self._version:
            raise RuntimeError("no model version is loaded")

    def status(self) -> str:
        return self._version

    async def generate(self, request: Generation) -> Generated:
        """Raises StaleVersionError if another version is loaded than the one asked for."""
        if request.version != self._version:
            raise StaleVersionError(request.version, self._version)
        return await self._batch(request)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.0)
    async def _batch(self, requests: list[Generation]) -> list[Generated]:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._decode, requests)

    def _decode(self, requests: list[Generation]) -> list[Generated]:
        start = time.perf_counter()
        results = self._runtime.recommend(
            [
                GenerationRequest(
                    items=r.items,
                    actions=r.actions,
                    values=r.values,
                    timestamps=r.timestamps,
                    now=r.now,
                    user=r.user,
                    exclude=r.exclude,
                    allowed=self._catalogue.allowed(r.filter_key),
                    prior=r.prior,
                    seed=r.seed,
                    **(dict(self._decoding) | {"strategy": r.strategy or self._decoding.strategy}),
                )
                for r in requests
            ]
        )
        milliseconds = (time.perf_counter() - start) * 1000
        self._metrics.batch_size.observe(len(requests))
        self._metrics.latency.observe(max(milliseconds, 1e-3))
        strategies = [r.strategy or self._decoding.strategy for r in requests]
        return [Generated(r.item_indices, r.log_probs, r.user_vector, milliseconds, s) for r, s in zip(results, strategies, strict=True)]

    def _warm_up(self, strategy: DecodingStrategy) -> Generation:
        return Generation(self._version, [0], [1], [float("nan")], [0], 0, {}, [], ((), ()), strategy)

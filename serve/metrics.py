"""The metrics of the serving graph: ray.util.metrics, so /metrics and the Ray dashboard show the same series (docs/metrics.md)."""

from __future__ import annotations

import ray
from ray.util.metrics import Counter, Gauge, Histogram

# from one hop to a timed-out request, in milliseconds
LATENCY_MS = [1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 50.0, 75.0, 100.0, 150.0, 200.0, 300.0, 500.0, 1000.0, 2000.0, 5000.0]
BATCH = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
EXPORTED = ("ray_ugt_", "ray_serve_")  # Ray puts its own prefix before every name


class StartedCounter(Counter):
    """A counter whose series exists from the start: an alert on a series that nothing emitted yet would never fire."""

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...] = (), start: tuple[dict[str, str], ...] = ({},)):
        super().__init__(name, description, tag_keys)
        for tags in start:
            self._record(0.0, tags)  # `inc` refuses 0

    def inc(self, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
        if value > 0:
            super().inc(value, tags)


class GatewayMetrics:
    def __init__(self) -> None:
        self.requests = Counter("ugt_requests_total", "HTTP requests answered", ("route", "status"))
        self.latency = Histogram("ugt_request_latency_ms", "Time from request to answer in the gateway", LATENCY_MS, ("route",))


class RecommenderMetrics:
    def __init__(self) -> None:
        sources = tuple({"source": s} for s in ("ugt", "retrieval", "popular"))
        rungs = tuple({"rung": r, "cause": c} for r in ("ugt", "retrieval") for c in ("late", "failed"))
        causes = tuple({"cause": c} for c in ("exhausted", "failed"))
        self.items = StartedCounter("ugt_recommended_items_total", "Items recommended, by the rung that answered", ("source",), sources)
        self.illegal = StartedCounter("ugt_illegal_items_total", "Items stopped by the last check: unknown, excluded, filtered, repeated. Must stay 0")
        self.short_pages = StartedCounter("ugt_short_pages_total", "Answers with fewer items than asked for", ("cause",), causes)
        self.rung_failures = StartedCounter("ugt_rung_failures_total", "Rungs skipped because they failed or were late", ("rung", "cause"), rungs)
        self.rung_latency = Histogram("ugt_rung_latency_ms", "Time of one rung of the ladder", LATENCY_MS, ("rung",))
        self.version = Gauge("ugt_model_version_info", "1 for the model version that answers", ("version",))


class GeneratorMetrics:
    def __init__(self) -> None:
        self.batch_size = Histogram("ugt_generation_batch_size", "Requests decoded together", BATCH)
        self.latency = Histogram("ugt_generation_latency_ms", "Time of one batch in ONNX Runtime", LATENCY_MS)


class EventMetrics:
    def __init__(self) -> None:
        self.events = Counter("ugt_events_total", "Feedback events stored", ("action",))
        self.refused = StartedCounter("ugt_events_refused_total", "Feedback events about items that do not exist")
        self.latency = Histogram("ugt_event_store_latency_ms", "Time to make one event durable", LATENCY_MS)


async def prometheus_text() -> str:
    """Our series and Ray Serve's, from the metrics agent of every living node. Values lag by up to Ray's report interval (10 s)."""
    import httpx

    texts = []
    async with httpx.AsyncClient(timeout=2.0, trust_env=False) as client:
        for node in ray.nodes():
            if node["Alive"]:
                response = await client.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics")
                response.raise_for_status()
                texts.append(response.text)
    return merged(texts)


def merged(texts: list[str]) -> str:
    """Prometheus texts of several nodes as one, our families only: each family's HELP and TYPE once, its samples together."""
    families: dict[str, list[str]] = {}
    for text in texts:
        name, header = "", []
        for line in text.splitlines():
            if line.startswith("# HELP "):
                name, header = line.split(" ", 3)[2], [line]
            elif line.startswith("# TYPE "):
                name = line.split(" ", 3)[2]
                header.append(line)
            elif line and name.startswith(EXPORTED):
                families.setdefault(name, list(header)).append(line)
    return "\n".join(line for lines in families.values() for line in lines) + "\n"

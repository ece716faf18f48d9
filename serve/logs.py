"""Logs of the serving graph: one JSON object a line on standard output, which Ray keeps by replica and shows in the dashboard."""

from __future__ import annotations

import structlog


def logger(deployment: str) -> structlog.typing.FilteringBoundLogger:
    """A logger whose lines carry the deployment's name; pass `trace_id` with every line that belongs to a request."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(20),
        cache_logger_on_first_use=True,
    )
    return structlog.get_logger("ugt").bind(deployment=deployment)

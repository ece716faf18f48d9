"""Ray jobs: any `ugt` command submitted to a cluster with the working tree as its working directory."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tenacity

from ray_app.cluster import API_SERVER, auth_headers
from ugt.schema import UGTError

# What the upload must not hold; .gitignore and .rayignore are honoured by Ray as well.
EXCLUDES = [".git", ".venv", ".ugt", "tests", "benchmarks", "docs", "**/__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", "*.egg-info"]

AGENT_SECONDS = 60  # a new head is waited for this long


def root() -> Path:
    """The folder that holds our packages: the checkout a job uploads."""
    return Path(__file__).resolve().parent.parent


def client(address: str) -> Any:
    """Ray's job client at the dashboard's address, by default Ray's own RAY_API_SERVER_ADDRESS or RAY_ADDRESS, else http://127.0.0.1:8265.

    Raises UGTError if nothing answers there.
    """
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in ("ray.dashboard", "ray._private.runtime_env", "ray.job_submission"):
        logging.getLogger(name).setLevel(logging.ERROR)  # a line per ignored file otherwise
    before = os.environ.get(API_SERVER)
    if address:
        os.environ[API_SERVER] = address  # Ray takes its own variables over what it is given; a flag of ours is above both
    try:
        return JobSubmissionClient(address or "http://127.0.0.1:8265", headers=auth_headers())  # Ray sends a token only in RAY_AUTH_MODE=token
    except AuthenticationError as error:
        raise UGTError(
            f"the Ray cluster{f' at {address}' if address else ''} wants another token. Put its token into RAY_AUTH_TOKEN or ~/.ray/auth_token."
        ) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = address or before or os.environ.get("RAY_ADDRESS") or "http://127.0.0.1:8265"
        raise UGTError(f"no Ray dashboard answers at {where}. Start a cluster (ugt cluster up) or give --address.") from error
    finally:
        os.environ.pop(API_SERVER, None)
        if before is not None:
            os.environ[API_SERVER] = before


def submit(address: str, arguments: Sequence[str], env: dict[str, str]) -> str:
    """Submit `python -m ray_app ARGUMENTS`; returns the job's id. The cluster needs the dependencies, not the checkout."""
    if not arguments:
        raise UGTError("nothing to submit. Give the command after --, for example: ugt job submit -- demo --source sample")
    if arguments[0] == "ugt":
        arguments = arguments[1:]
    jobs = client(address)
    # the dashboard answers some seconds before a node's agent has reported to it: longer on a busy machine
    agent_is_late = tenacity.retry_if_exception(lambda error: isinstance(error, RuntimeError) and "No available agent" in str(error))
    patient = tenacity.Retrying(retry=agent_is_late, wait=tenacity.wait_fixed(2), stop=tenacity.stop_after_delay(AGENT_SECONDS), reraise=True)
    try:
        return patient(
            jobs.submit_job,
            entrypoint="python -m ray_app " + shlex.join(arguments),
            runtime_env={"working_dir": str(root()), "excludes": EXCLUDES, "env_vars": env},
            metadata={"command": shlex.join(arguments)[:200]},
        )
    except RuntimeError as error:
        if "No available agent" not in str(error):
            raise
        raise UGTError(
            f"the Ray cluster has no node that takes jobs after {AGENT_SECONDS} s. Look at it: ugt cluster status, and the dashboard's page of nodes."
        ) from error


def follow(address: str, job_id: str) -> bool:
    """Print a job's log until it ends; True if it succeeded."""
    import asyncio

    from ray.job_submission import JobStatus

    jobs = client(address)

    async def tail() -> None:
        async for lines in jobs.tail_job_logs(job_id):
            sys.stdout.write(lines)
            sys.stdout.flush()

    asyncio.run(tail())
    return jobs.get_job_status(job_id) == JobStatus.SUCCEEDED


def listing(address: str) -> list[dict[str, Any]]:
    """Jobs of the cluster, newest first."""
    jobs = client(address).list_jobs()
    rows = [{"id": j.submission_id or j.job_id or "", "status": str(j.status), "command": j.entrypoint, "start": j.start_time or 0} for j in jobs]
    return sorted(rows, key=lambda row: -row["start"])


def logs(address: str, job_id: str) -> str:
    try:
        return client(address).get_job_logs(job_id)
    except RuntimeError as error:
        raise UGTError(f"no job '{job_id}' on this cluster. `ugt job list` shows them.") from error


def stop(address: str, job_id: str) -> bool:
    try:
        return client(address).stop_job(job_id)
    except RuntimeError as error:
        raise UGTError(f"no job '{job_id}' on this cluster. `ugt job list` shows them.") from error

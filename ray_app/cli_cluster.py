"""`ugt job` and `ugt cluster`: any command as a Ray job, and a local Ray head to run them on."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from ray_app.cli_options import ConfigPath, JsonPath, console, settings_of, write_json
from ugt.schema import UGTError

Address = Annotated[str, typer.Option(help="Address of the Ray dashboard, default http://127.0.0.1:8265.")]

job_app = typer.Typer(no_args_is_help=True, help="Any ugt command as a Ray job.")
cluster_app = typer.Typer(no_args_is_help=True, help="A local Ray head that stays up, for jobs.")


@job_app.command("submit", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def job_submit(context: typer.Context, address: Address = "", wait: Annotated[bool, typer.Option(help="Follow the log to the end.")] = True) -> None:
    """Run `ugt ARGUMENTS` as a Ray job: ugt job submit -- demo --source sample."""
    from ray_app import jobs

    env = {name: value for name, value in os.environ.items() if name.startswith("UGT_")} | {"UGT_HOME": str(settings_of(None).home)}
    job_id = jobs.submit(address, [a for a in context.args if a != "--"], env)
    console.print(f" submitted {job_id}", highlight=False)
    if wait and not jobs.follow(address, job_id):
        raise UGTError(f"job {job_id} did not succeed: its log is above, or `ugt job logs {job_id}`.")


@job_app.command("list")
def job_list(address: Address = "") -> None:
    """Jobs of the cluster, newest first."""
    from ray_app import jobs

    for row in jobs.listing(address):
        console.print(f" {row['id']:<28} {row['status']:<10} {row['command']}", highlight=False, markup=False)


@job_app.command("logs")
def job_logs(job_id: str, address: Address = "") -> None:
    """The log of a job."""
    from ray_app import jobs

    sys.stdout.write(jobs.logs(address, job_id))


@job_app.command("stop")
def job_stop(job_id: str, address: Address = "") -> None:
    """Stop a job."""
    from ray_app import jobs

    console.print(f" {job_id} {'stopping' if jobs.stop(address, job_id) else 'had already ended'}", highlight=False)


@cluster_app.command("up")
def cluster_up(config: ConfigPath = None) -> None:
    """Start a local Ray head on loopback and leave it up."""
    from ray_app import head

    status = head.up(settings_of(config))
    console.print(f" up            {status['address']}   dashboard {status['dashboard']}", highlight=False)
    console.print(" next          ugt job submit -- demo   ·   ugt cluster down", highlight=False)


@cluster_app.command("status")
def cluster_status(config: ConfigPath = None, json_path: JsonPath = None) -> None:
    """Whether the head is up, and where its dashboard is."""
    from ray_app import head

    status = head.state(settings_of(config))
    console.print(f" {'up' if status['up'] else 'down'}   {status['address']}   {status['dashboard']}", highlight=False)
    write_json(json_path, status)


@cluster_app.command("down")
def cluster_down(config: ConfigPath = None) -> None:
    """End the head that `up` started, and no other Ray process of the machine."""
    from ray_app import head

    ended = head.down(settings_of(config))
    console.print(f" {f'{ended} processes ended' if ended else 'no head of ours was up'}", highlight=False)

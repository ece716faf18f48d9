"""The serving graph as one Ray Serve application: typed arguments, start, stop.

    Gateway -> Recommender -+-> Generator
                            +-> Retriever
                            +-> popular (Redis)
            -> Events

`serve run serve.app:build config=configs/serve.yaml`, `serve deploy configs/serve.yaml` and `ugt serve run` build the same graph.
"""

# no postponed annotations: Ray Serve reads the annotation of `build` to check its arguments
import re
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError
from ray import serve
from ray.serve.schema import LoggingConfig, ServeDeploySchema

from serve.events import Events
from serve.gateway import Gateway
from serve.generator import MAX_BATCH, Generator
from serve.recommender import Recommender
from serve.retriever import Retriever
from serve.versions import VersionSource
from ugt.registry import PRODUCTION, Registry
from ugt.schema import Config, UGTError
from ugt.settings import Settings, load_settings
from ugt.stores import embedded
from ugt.stores.records import Records

NAME = "ugt"
IMPORT_PATH = "serve.app:build"
START_SECONDS = 120.0


class BuildArgs(Config):
    """Arguments of the builder. `settings` are the sections of ugt.settings.Settings; `config` a file of them, or a Serve config file that holds them."""

    config: str = ""
    version: str = PRODUCTION
    settings: dict[str, Any] = Field(default_factory=dict)


def build(args: BuildArgs) -> serve.Application:
    """The application for `serve run` and `serve deploy`. Raises UGTError if there is no such version or its data is not in the stores."""
    settings, version = settings_of(args)
    return graph(settings, version)


def settings_of(args: BuildArgs) -> tuple[Settings, str]:
    """Settings and version of the arguments. What a file or a Serve config holds is below the environment, as everywhere; `settings` beside a file is above."""
    if not args.config:
        return load_settings(base=args.settings), args.version
    path = Path(args.config)
    if not path.is_file():
        raise UGTError(f"config: there is no file {path.absolute()}. The presets are in configs/.")
    loaded = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not (isinstance(loaded, dict) and "applications" in loaded):
        return load_settings(path, _dotted(args.settings)), args.version
    try:
        deploy = ServeDeploySchema.model_validate(loaded)
        inner = next(BuildArgs(**a.args) for a in deploy.applications if a.import_path == IMPORT_PATH)
    except (ValidationError, StopIteration) as error:
        raise UGTError(f"{path} is no Serve config file with an application {IMPORT_PATH}: {error}") from error
    http = {"host": deploy.http_options.host, "port": deploy.http_options.port}
    held = {**inner.settings, "serve": {**inner.settings.get("serve", {}), **http}}
    return load_settings(None, _dotted(args.settings), base=held), args.version if args.version != PRODUCTION else inner.version


def graph(settings: Settings, version: str = PRODUCTION) -> serve.Application:
    """The deployments, bound to each other. Embedded stores are running when this returns."""
    home, config = settings.home.absolute(), settings.serve
    registry = Registry(settings.registry_location)
    version = registry.manifest(config.model_name, version).version
    registry.resolve(config.model_name, version)  # a damaged version must be refused here, not by each replica
    stores = embedded.resolve(settings.stores, home)
    _check_materialized(stores.sql_url, config.model_name, version)
    source = VersionSource(name=config.model_name, registry=settings.registry_location, stores=settings.stores, home=home)

    def deployed(deployment: Any, cpus: float, ongoing: int, versioned: bool = False) -> Any:
        return deployment.options(
            ray_actor_options={"num_cpus": cpus},  # Ray sets OMP_NUM_THREADS=1 for fractions; a runtime_env would forbid its warm workers
            max_ongoing_requests=ongoing,
            max_queued_requests=config.max_queued_requests,
            health_check_period_s=5,
            health_check_timeout_s=20,
            graceful_shutdown_timeout_s=5,
            graceful_shutdown_wait_loop_s=0.5,
            logging_config=LoggingConfig(encoding="JSON", enable_access_log=False),
            **({"user_config": {"version": version}} if versioned else {}),
        )

    # fractions of a CPU, because each replica waits most of the time: the whole graph fits into one
    generator = deployed(Generator, 0.3, 2 * MAX_BATCH, versioned=True).bind(source, config.generator_threads, config.execution_provider)
    retriever = deployed(Retriever, 0.1, 32, versioned=True).bind(source)
    events = deployed(Events, 0.1, 32).bind(source, config.exposure_hours)
    recommender = deployed(Recommender, 0.2, 32, versioned=True).bind(generator, retriever, source, config)
    return deployed(Gateway, 0.2, 64).bind(recommender, events, stores.sql_url)


def start(settings: Settings, version: str = PRODUCTION) -> str:
    """Bring the graph up on the connected Ray cluster and wait until it is ready; returns its base URL.

    Raises UGTError if the port is taken, the version or its data is missing, or a replica does not come up.
    """
    host, port = settings.serve.host, settings.serve.port
    check_port(host, port)
    if serve.status().proxies:
        raise UGTError("Serve already runs on this Ray cluster, with its own port. Use `serve deploy configs/serve.yaml`, or end it first: serve shutdown")
    application = graph(settings, version)
    serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port}, logging_config=LoggingConfig(encoding="JSON", enable_access_log=False))
    try:
        serve.run(application, name=NAME, route_prefix="/", blocking=False)
    except RuntimeError as error:
        serve.delete(NAME)
        raise UGTError(_cause(str(error))) from error
    base_url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"
    wait_ready(base_url)
    return base_url


def stop(settings: Settings) -> None:
    """Take the graph down, and Serve with it if nothing else runs there; then the embedded stores, their data flushed."""
    if set(serve.status().applications) <= {NAME}:
        serve.shutdown()
    else:
        serve.delete(NAME)
    embedded.stop(settings.home)


def check_port(host: str, port: int) -> None:
    """Raises UGTError if somebody else listens on the port."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except OSError as error:
            raise UGTError(
                f"port {port} of {host} can't be used ({error.strerror}): another program listens there. End it, or take another: UGT_SERVE__PORT={port + 1}"
            ) from error


def wait_ready(base_url: str, seconds: float = START_SECONDS) -> None:
    """Until /ready says that every dependency answers. Raises UGTError with the last answer."""
    end, last = time.monotonic() + seconds, "no answer"
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{base_url}/ready", timeout=10) as response:
                if response.status == 200:
                    return
        except urllib.error.HTTPError as error:
            last = error.read().decode(errors="replace")
        except OSError as error:
            last = str(error)
        time.sleep(0.2)
    raise UGTError(f"the serving graph is not ready after {seconds:.0f} s: {last[:500]}. The replicas' logs are in the Ray dashboard (Serve).")


def _check_materialized(sql_url: str, name: str, version: str) -> None:
    records = Records(sql_url)
    try:
        if records.version(name, version) is None:
            raise UGTError(f"the stores do not hold the data of {name} {version}. Load it: ugt data materialize")
    finally:
        records.close()


def _cause(text: str) -> str:
    """The message of the UGTError inside Serve's report of a failed deployment, or the end of the report."""
    found = re.findall(r"UGTError: (.+)", text)
    return found[-1].strip() if found else f"the serving graph did not come up: {text.strip()[-800:]}"


def _dotted(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat

"""The house keeps its floors: imports only go down, a stage never imports another, the ground imports no Ray."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {"ugt": 0, "data": 1, "train": 1, "tune": 1, "serve": 1, "ray_app": 2}
FILES = sorted(p for room in FLOORS for p in (ROOT / room).rglob("*.py"))


def imported(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.append((node.lineno, node.module or ""))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_go_down(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    for line, module in imported(path):
        head = module.split(".")[0]
        if room == "ugt":
            assert head != "ray", f"{path}:{line}: the ground floor imports Ray"
        if head in FLOORS and head != room:
            assert FLOORS[head] < FLOORS[room], f"{path}:{line}: {room}/ imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_says_its_subject_and_stays_small(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), f"{path} does not say its subject in its first line"
    assert text.count("\n") <= 420, f"{path} has {text.count(chr(10))} lines: it has more than one subject"
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b|to be implemented|unittest\.mock|MagicMock", text), path


def test_rays_names_are_never_rebound() -> None:
    for path in FILES:
        names = [alias.asname or alias.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import) for alias in node.names]
        assert not {"serve", "train", "tune", "data"} & set(names), f"{path}: `import serve` of ours hides Ray's; name the module: from serve.app import build"


def test_every_module_is_reached() -> None:
    """No module that nothing imports (fault 13). Entry points are named here with their caller."""
    entry = {"ray_app.__main__", "ray_app.cli", "serve.app"}
    text = "\n".join(p.read_text() for p in [*FILES, *sorted((ROOT / "configs").glob("*.yaml"))])
    for path in FILES:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.name == "__init__.py" or module in entry:
            continue
        package, _, name = module.rpartition(".")
        reached = re.search(
            rf"from {re.escape(module)} import|import {re.escape(module)}\b|from {re.escape(package)} import [^\n]*\b{name}\b|{re.escape(module)}:", text
        )
        assert reached, f"{module} is imported by nothing"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_preset_loads(path: Path) -> None:
    from ugt.settings import load_settings

    if path.name == "serve.yaml":  # Ray Serve's own deployment schema
        from ray.serve.schema import ServeDeploySchema

        ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    else:
        load_settings(path)


def test_cluster_yaml_passes_rays_own_schema() -> None:
    import jsonschema
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    jsonschema.validate(config, schema)
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(config))


def test_the_repository_holds_no_address_or_path_of_a_machine() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "uv.lock" not in files
    here = str(ROOT) + "/"
    for name in files:
        path = ROOT / name
        if path.suffix in {".png", ".parquet"} or not path.is_file():
            continue
        text = path.read_text(errors="replace")
        assert here not in text, f"{name} holds a path of this machine"
        assert not re.search(r"https?://[^\s]*(pypi|/simple\b)", text), f"{name} holds an address of a package registry"

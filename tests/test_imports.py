"""Who may import whom: the walls of the house."""

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "bertjax"
FILES = sorted(ROOT.rglob("*.py"))
ONLY_IN = {  # package -> the files that may import it
    "flax": {"models"},
    "orbax": {"training/checkpoint.py", "training/orbax_noise.py"},
    "tensorflow": {"data/stream.py", "data/tfds_records.py", "interop/tf1.py"},
    "tensorflow_datasets": {"data/corpus.py", "data/tfds_records.py"},
    "apache_beam": {"data/beam_engine.py"},
    "sklearn": {"tasks"},
    "scipy": {"tasks"},
    "nervaluate": {"tasks"},
    "safetensors": {"interop/hugging_face_folder.py"},
    "google.api_core": {"bucket.py"},
    "google.auth": {"bucket.py"},
    "google.cloud": {"bucket.py"},
    "google.protobuf": {"data/sentence_piece_model.py"},
    "fsspec": {"bucket.py"},
}
NEVER = {  # folder -> what nothing in it may import
    "data": {"jax", "flax", "optax", "bertjax.models", "bertjax.training", "bertjax.tasks"},
    "linting": {"jax", "tensorflow", "bertjax.models", "bertjax.training"},
    "models": {"optax", "bertjax.data", "bertjax.training"},
    "training": {"bertjax.planning"},
    "planning": {"optax", "bertjax.data"},
    "tasks": {"jax", "flax", "optax", "bertjax.models", "bertjax.training"},
    "interop": {"optax", "torch", "transformers", "bertjax.models"},
    "bucket.py": {"jax", "numpy", "bertjax.data", "bertjax.models", "bertjax.training"},
    "config.py": {"jax", "numpy", "bertjax"},
    "validation.py": {"jax", "numpy", "bertjax.data", "bertjax.models", "bertjax.training"},
}


def imports(path: Path) -> set[str]:
    """Modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_keep_to_their_room(path):
    here = path.relative_to(ROOT).as_posix()
    names = imports(path)
    for package, allowed in ONLY_IN.items():
        if here not in allowed and here.split("/")[0] not in allowed:
            assert not [name for name in names if within(name, package)], package
    for package in NEVER.get(here.split("/")[0], ()):
        assert not [name for name in names if within(name, package)], package
    commands = {
        f"bertjax.{name}"
        for name in ("train", "prepare", "plan", "convert", "finetune", "predict", "inspect")
    } | {"bertjax.newest_checkpoint"}
    assert not names & commands, "nothing imports a command"


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("bertjax", ["jax", "tensorflow", "flax", "numpy"]),
        ("bertjax.data.reader", ["jax", "tensorflow"]),
        ("bertjax.models", ["tensorflow", "orbax"]),
        ("bertjax.tasks.registry", ["jax", "tensorflow", "sklearn"]),
        ("bertjax.training.loop", ["tensorflow"]),
        ("bertjax.plan", ["jax", "tensorflow"]),
        ("bertjax.convert", ["jax", "tensorflow"]),
        ("bertjax.encoder", ["tensorflow", "orbax", "optax", "tokenizers", "sentencepiece"]),
        ("bertjax.interop.formats", ["jax", "tensorflow"]),
        ("bertjax.bucket", ["jax", "tensorflow", "numpy", "google.cloud", "fsspec"]),
        ("bertjax.newest_checkpoint", ["jax", "tensorflow", "orbax"]),
    ],
)
def test_importing_pulls_in_nothing_heavy(module, absent):
    code = f"import sys, {module}; print(*[m for m in {absent} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout.strip() == ""


def test_every_package_is_installed():
    """An editable install, as the tests have, finds what a wheel would leave out."""
    settings = configparser.ConfigParser()
    settings.read(ROOT.parent / "setup.cfg")
    folders = [path.parent.relative_to(ROOT.parent) for path in ROOT.rglob("__init__.py")]
    packages = {".".join(folder.parts) for folder in folders} | {"bertjax.configs"}
    assert set(settings["options"]["packages"].split()) == packages

"""Who may import whom: the walls of the house."""

import ast
import configparser
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from folders import REPOSITORY

from bertjax import moved

ROOT = REPOSITORY / "bertjax"
FILES = sorted(ROOT.rglob("*.py"))
# From the ground up: a room imports those above it in this list and nothing below, and so there is
# no circle of rooms.
FLOORS = (
    "moved",
    "errors",
    "registry",
    "version",
    "cores",
    "storage",
    "heads",
    "encoders",
    "config",
    "parameters",
    "extensions",
    "cli",
    "data/counter_rng",
    "data/tokenizers",
    "data/corpus",
    "data/store",
    "data/stream",
    "data/texts",
    "inspect",
    "prepare",
    "tasks",
    "parallel",
    "models",
    "flops",
    "objectives",
    "checkpoints",
    "weights",
    "reports",
    "training",
    "pretraining",
    "fine_tuning",
    "sweeps",
    "plan",
    "scoring",
    "encoder",
    "testing",
    "evaluation",
    "newest_checkpoint",
    "convert",
    "train",
    "finetune",
    "sweep",
    "predict",
    "__main__",
)
ONLY_IN = {  # package -> the rooms and files that may import it
    "flax": {"models"},
    "orbax": {"checkpoints/checkpoint.py", "checkpoints/orbax_noise.py"},
    "tensorflow": {
        "data/stream/tf_data.py",
        "data/corpus/tfds_records.py",
        "weights/tf1.py",
    },
    "tensorflow_datasets": {"data/corpus/corpus.py", "data/corpus/tfds_records.py"},
    "apache_beam": {"prepare/beam_engine.py"},
    "sklearn": {"tasks"},
    "scipy": {"tasks", "sweeps/report.py"},
    "nervaluate": {"tasks"},
    "safetensors": {"weights/hugging_face_folder.py"},
    "google.api_core": {"storage/bucket.py"},
    "google.auth": {"storage/bucket.py"},
    "google.cloud": {"storage/bucket.py"},
    "google.protobuf": {"data/tokenizers/sentence_piece_model.py"},
    "fsspec": {"storage/bucket.py"},
}
NEVER = {  # room -> packages that nothing in it may import
    "storage": {"jax"},
    "config": {"jax", "numpy"},
    "data": {"jax", "flax", "optax"},
    "inspect": {"jax", "tensorflow"},
    "prepare": {"jax", "tensorflow"},
    "models": {"optax"},
    "plan": {"optax", "bertjax.data"},
    "tasks": {"jax", "flax", "optax"},
    "weights": {"optax", "torch", "transformers"},
}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    names = {path.relative_to(ROOT.parent).with_suffix("").as_posix(): path for path in FILES}
    return {name.replace("/", ".").removesuffix(".__init__"): path for name, path in names.items()}


def imports(path: Path) -> set[str]:
    """What a file imports, anywhere in it: modules, and names of modules."""
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


def floor(path: Path) -> int:
    """Where in FLOORS a file lies."""
    here = path.relative_to(ROOT).with_suffix("").as_posix()
    found = [i for i, room in enumerate(FLOORS) if here == room or here.startswith(room + "/")]
    assert len(found) == 1, f"{here}: give it a floor in FLOORS"
    return found[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_keep_to_their_room(path):
    here = path.relative_to(ROOT).as_posix()
    names = imports(path)
    for package, allowed in ONLY_IN.items():
        if here not in allowed and here.split("/")[0] not in allowed:
            assert not [name for name in names if within(name, package)], package
    for package in NEVER.get(here.split("/")[0], ()):
        assert not [name for name in names if within(name, package)], package


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_import_runs_up(path):
    if path.parent == ROOT and path.stem == "__init__":  # the public names, when first used
        return
    if path.stem == "__init__" and path.parent == ROOT / "data":
        return
    for name in imports(path) & modules().keys() - {"bertjax"}:
        target = modules()[name]
        if target != ROOT / "data/__init__.py":
            assert floor(target) <= floor(path), f"{name} is on a higher floor"


def test_no_two_modules_import_each_other():
    """Also within a room, and also inside functions."""
    names = modules()
    # `from a.b import c` names a.b too: a package that only holds c.
    needs = {
        name: {other for other in imports(path) & names.keys() if names[other].stem != "__init__"}
        for name, path in names.items()
        if path.stem != "__init__"
    }
    while needs:
        leaves = [name for name, others in needs.items() if not others & needs.keys()]
        assert leaves, f"a circle among {sorted(needs)}"
        for name in leaves:
            del needs[name]


def test_nothing_imports_a_command():
    commands = {"bertjax.train", "bertjax.convert", "bertjax.finetune", "bertjax.sweep"}
    commands |= {"bertjax.predict", "bertjax.newest_checkpoint", "bertjax.__main__"} | {
        f"bertjax.{room}.__main__" for room in ("prepare", "plan", "inspect")
    }
    assert commands <= modules().keys()
    for path in FILES:
        assert not imports(path) & commands, path


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("bertjax", ["jax", "tensorflow", "flax", "numpy"]),
        ("bertjax.data.stream.reader", ["jax", "tensorflow"]),
        ("bertjax.models", ["tensorflow", "orbax"]),
        ("bertjax.tasks.registry", ["jax", "tensorflow", "sklearn"]),
        ("bertjax.training.loop", ["tensorflow"]),
        ("bertjax.plan.__main__", ["jax", "tensorflow"]),
        ("bertjax.convert", ["jax", "tensorflow"]),
        ("bertjax.encoder", ["tensorflow", "orbax", "optax", "tokenizers", "sentencepiece"]),
        ("bertjax.weights.formats", ["jax", "tensorflow"]),
        ("bertjax.storage.bucket", ["jax", "tensorflow", "numpy", "google.cloud", "fsspec"]),
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


# What the modules of 0.1.0 had, a name of each.
HAD = {
    "bertjax.bucket": "BucketPath",
    "bertjax.data.blocks": "CorpusError",
    "bertjax.data.duplicates": "DuplicateFinder",
    "bertjax.data.masking": "mask_rows",
    "bertjax.data.reader": "RowReader",
    "bertjax.data.store_writer": "StoreWriter",
    "bertjax.data.tokenizer": "load_tokenizer",
    "bertjax.data.vocabulary": "TokenizerError",
    "bertjax.interop": "__path__",
    "bertjax.interop.formats": "read_weights",
    "bertjax.interop.hugging_face": "to_bertjax",
    "bertjax.interop.weights": "WeightsError",
    "bertjax.models.attention_kernel": "tpu_tiling",
    "bertjax.models.partition": "parameter_spec",
    "bertjax.training.checkpoint": "CheckpointStore",
    "bertjax.training.objectives": "pretraining_sums",
    "bertjax.training.sharding": "make_mesh",
    "bertjax.validation": "validate",
}


def test_paths_of_0_1_0_still_work_and_say_where_they_went():
    assert HAD.keys() == moved.MOVED.keys()
    code = "import warnings; warnings.simplefilter('error', DeprecationWarning); import "
    for old, new in moved.MOVED.items():
        sys.modules.pop(old, None)
        with pytest.warns(DeprecationWarning, match=f"{old} is now {new}; the old path goes"):
            found = importlib.import_module(old)
        assert found is importlib.import_module(new)
        assert found.__spec__.name == new
        assert hasattr(found, HAD[old]), old
    result = subprocess.run([sys.executable, "-c", f"{code} bertjax.bucket"], capture_output=True)
    assert b"DeprecationWarning: bertjax.bucket is now" in result.stderr


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("bertjax.data.store", "open_store"),
        ("bertjax.data.stream", "BatchStream"),
        ("bertjax.data.corpus", "read_documents"),
        ("bertjax.cli", "load_recipe"),
    ],
)
def test_names_of_modules_that_became_packages_still_work(package, name):
    module = importlib.import_module(package)
    with pytest.warns(DeprecationWarning, match=f"{package}.{name} is now {package}"):
        assert callable(getattr(module, name))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing

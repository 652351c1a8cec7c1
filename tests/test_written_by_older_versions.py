"""Stores and checkpoints that an older commit wrote are read as it read them: goldens/written_by_*.

The README.md there says how they were made. They are worked on as copies.
"""

import hashlib
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from folders import GOLDENS

import bertjax
from bertjax.checkpoints.checkpoint import resolve
from bertjax.data.store.store import open_store, verify_store
from bertjax.data.stream.packed_rows import PackedRows
from bertjax.data.stream.reader import RowReader
from bertjax.data.stream.rows import RowSpec

OLDER = GOLDENS / "written_by_197cb7a"
WRITTEN = json.loads((OLDER / "written.json").read_text())
TEXT = "The café was full of people. Nobody heard the naïve question."
POSITIONS = np.concatenate([np.arange(40), 10**9 + np.arange(40)])


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(OLDER, tmp_path / "copy")


def sha256_of(array):
    """Dtype, shape and little-endian bytes in C order."""
    array = np.asarray(array)
    head = f"{array.dtype.name} {array.shape} ".encode()
    return hashlib.sha256(head + array.astype(array.dtype.newbyteorder("<")).tobytes()).hexdigest()


def sha256_of_batch(batch):
    """Of the hashes of its arrays, in the order of their names."""
    lines = [f"{name} {sha256_of(array)}" for name, array in sorted(batch.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def by_path(name, tree):
    return {
        f"{name}/{jax.tree_util.keystr(path, simple=True, separator='/')}": sha256_of(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def test_parameters_and_moments_are_restored_to_the_bit(copy):
    checkpoint = resolve(copy / "workdir")
    assert checkpoint.step == 7
    found = by_path("params", checkpoint.restore_params())
    found |= by_path("opt_state", checkpoint.restore_opt_state())
    assert found == WRITTEN["arrays"]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["workdir", "another workdir"])
def test_the_run_goes_on_with_the_same_rows(copy, where):
    command = [sys.executable, "-m", "bertjax.train", f"--config={copy / 'recipe.py'}"]
    command += [f"--workdir={copy / where}", f"--config.data.store={copy / 'store'}"]
    if where != "workdir":
        command.append(f"--config.continue_from={copy / 'workdir'}")
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    words = "resuming" if where == "workdir" else "continuing another run"
    assert f"{words} from step 7" in process.stderr
    lines = (copy / where / "metrics.jsonl").read_text().splitlines()
    for line, expected in zip(map(json.loads, lines), WRITTEN["steps"], strict=True):
        # How a step is computed may change, and with it the rounding.
        expected = {**expected, "loss": pytest.approx(expected["loss"], rel=1e-4)}
        assert {name: line[name] for name in expected} == expected


def test_the_model_loads_with_its_tokenizer(copy):
    bert = bertjax.load(copy / "workdir")
    assert [int(i) for i in bert.tokenizer.encode(TEXT)] == WRITTEN["ids"]
    np.testing.assert_allclose(bert.embed(TEXT)[0], WRITTEN["mean_pooled"], atol=1e-5)


@pytest.mark.parametrize("name", WRITTEN["rows"])
def test_the_store_has_the_same_rows_and_masks(copy, name):
    verify_store(copy / "store")
    store = open_store(copy / "store")
    split, masking, kind, depth = name.split()
    spec = RowSpec(
        max_length=192, max_predictions=36, masking=masking, next_sentence=kind == "pairs"
    )
    reader = RowReader(getattr(store, split), store.tokenizer(), spec, seed=3, stream_id=1)
    source = PackedRows(reader, int(depth)) if int(depth) > 1 else reader
    assert sha256_of_batch(source.rows(POSITIONS)) == WRITTEN["rows"][name]

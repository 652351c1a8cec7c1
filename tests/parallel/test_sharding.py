import json
import subprocess
import sys

import jax
import pytest
from jax.sharding import PartitionSpec

from bertjax.cli import recipes
from bertjax.config import ConfigError, MeshConfig
from bertjax.models import abstract_params
from bertjax.parallel import sharding
from bertjax.parallel.partition import (
    AXES,
    gather_params,
    logical_axes,
    parameter_spec,
    update_spec,
)
from bertjax.parallel.sharding import make_mesh
from bertjax.parameters import TABLE, line_of


def test_an_unknown_parameter_raises():
    with pytest.raises(ValueError, match="'encoder/layer_0/gate/kernel' is not in"):
        logical_axes("encoder/layer_0/gate/kernel", (8, 8))
    with pytest.raises(ValueError, match=r"'pooler/kernel' has the shape \(8,\), but .* 2 axes"):
        logical_axes("pooler/kernel", (8,))


def test_shardings_follow_the_rules():
    params = abstract_params(recipes.load_recipe("tiny").model)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    specs = jax.tree.map(lambda s: s.spec, sharding.parameter_shardings(params, mesh))
    layer = specs["encoder"]["layer_0"]
    assert specs["embeddings"]["word"]["embedding"] == PartitionSpec("tensor", "fsdp")
    assert layer["attention"]["query"]["kernel"] == PartitionSpec("fsdp", "tensor")
    assert layer["attention"]["output"]["kernel"] == PartitionSpec("tensor", "fsdp")
    assert layer["mlp"]["output"]["bias"] == PartitionSpec(None)


def test_layers_are_left_to_gather_their_own(monkeypatch):
    line = line_of("encoder/layer_0/mlp/output/kernel")
    monkeypatch.setitem(TABLE, "generator/encoder/layer_*/mlp/output/kernel", line)
    gathered = []
    monkeypatch.setattr(
        jax.lax, "with_sharding_constraint", lambda x, spec: gathered.append(spec) or x
    )
    layer = {"layer_0": {"mlp": {"output": {"kernel": jax.numpy.ones((4, 2))}}}}
    dense = {"dense": {"kernel": jax.numpy.ones((2, 2))}}
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        gather_params({"encoder": layer, "generator": {"encoder": layer}, "mlm_head": dense})
    assert gathered == [PartitionSpec(None, None)]


def test_a_mesh_that_the_devices_do_not_fill_is_refused():
    with pytest.raises(ConfigError, match=r"needs a multiple of 3 devices, but there are 1"):
        make_mesh(MeshConfig(data=-1, fsdp=3), jax.devices()[:1])
    with pytest.raises(ConfigError, match=r"needs 4 devices, but there are 1"):
        make_mesh(MeshConfig(data=2, tensor=2), jax.devices()[:1])


def test_a_vocabulary_that_does_not_divide_is_whole_at_rest():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    sizes = {**mesh.shape, "tensor": 8}
    spec = parameter_spec("embeddings/word/embedding", (30_522, 64), sizes)
    assert spec == PartitionSpec(None, "fsdp")
    spec = parameter_spec("embeddings/word/embedding", (30_528, 64), sizes)
    assert spec == PartitionSpec("tensor", "fsdp")


@pytest.mark.parametrize(
    ("path", "shape", "sizes", "expected"),
    [
        ("encoder/layer_0/mlp/output/kernel", (64, 32), (4, 1, 1), ("data", "fsdp")),
        ("encoder/layer_0/mlp/output/kernel", (64, 32), (4, 1, 2), ("tensor", "data")),
        ("encoder/layer_0/mlp/output/kernel", (64, 32), (4, 2, 2), ("tensor", "fsdp")),
        ("embeddings/word/embedding", (30_522, 32), (4, 1, 1), ("tensor", "data")),
        ("mlm_head/output/bias", (30_522,), (4, 1, 1), ("tensor",)),
        ("encoder/layer_0/mlp/output/bias", (32,), (4, 2, 2), ("data",)),
    ],
)
def test_an_update_is_split_over_the_first_dimension_that_data_divides(
    path, shape, sizes, expected
):
    sizes = dict(zip(AXES, sizes, strict=True))
    assert update_spec(path, shape, sizes) == PartitionSpec(*expected)


@pytest.mark.slow
def test_meshes_and_microbatches_give_the_same_losses():
    """On 8 simulated devices: data, fsdp and tensor, dropout on, scanned, several parts and one."""
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.meshes", "--quick"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    runs = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(runs) == 21
    for run in runs:
        assert run["last_loss"] < run["first_loss"] - 0.05, "it learns"
        assert run["largest_difference"] < 1e-5, run
        assert not run["rematerialised"], run
        # Under fsdp the rest are LayerNorm and biases; tensor alone keeps an odd vocabulary whole.
        assert run["sharded_share"] > 0.9 or run["mesh"][1] == 1, run
        # All but the vocabulary of 99 and the two labels divide over `data`.
        assert run["sharded_share_of_optimizer"] > 0.98 or not run["shard_optimizer"], run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lookup_gradient", "shard_optimizer"),
    [("scatter", False), ("sorted", False), ("scatter", True)],
)
def test_a_step_moves_only_what_its_mesh_asks_for(lookup_gradient, shard_optimizer):
    """Data-parallel steps add gradients up; fsdp gathers parameters; nothing goes all to all."""
    result = subprocess.run(
        [sys.executable, "-c", COLLECTIVES, lookup_gradient, str(shard_optimizer)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    data, fsdp, tensor, all_three = (set(line.split()) for line in result.stdout.splitlines())
    assert data == {"all-reduce", *["all-gather", "reduce-scatter"] * shard_optimizer}
    # On CPU the compiler writes a reduce-scatter as an all-reduce.
    assert fsdp - {"reduce-scatter"} == {"all-gather", "all-reduce"}
    for kinds in (tensor, all_three):
        assert kinds - {"reduce-scatter"} <= {"all-gather", "all-reduce"}


COLLECTIVES = """
import functools, re, sys
from benchmarks import meshes
import jax
from bertjax.config import MeshConfig, ModelConfig, OptimizerConfig, Phase
from bertjax.training import sharding
from bertjax.objectives.objective import abstract_batch, make_objective
from bertjax.training.optimizer import make_optimizer
from bertjax.training.start import abstract_state
from bertjax.training.step import train_step

model = ModelConfig(
    vocab_size=99, hidden_size=32, num_layers=2, num_heads=8, intermediate_size=64,
    max_positions=16, dtype="float32", scan_layers=True, lookup_gradient=sys.argv[1],
)
optimizer = make_optimizer(OptimizerConfig(), 100)
objective = make_objective(model)
shard = sys.argv[2] == "True"
for axes in ((8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)):
    mesh = sharding.make_mesh(MeshConfig(*axes), jax.devices())
    with jax.set_mesh(mesh):
        state = abstract_state(model, optimizer, mesh, shard)
        whole = sharding.replicated(mesh)
        key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=whole)
        step = jax.jit(
            functools.partial(train_step, objective, optimizer, 2, shard_optimizer=shard),
            out_shardings=(jax.tree.map(lambda x: x.sharding, state), whole),
        )
        batch = abstract_batch(objective, Phase(1, 16, 16, 4), mesh)
        text = step.lower(state, batch, key).compile().as_text()
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    print(*sorted(set(re.findall(rf" ({kinds})(?:-start)?[(]", text))))
"""


@pytest.mark.slow
def test_the_loop_over_chunks_of_logits_adds_no_gradients_up_over_rows():
    """The gradient of the word table is summed over devices once, and not for each chunk."""
    result = subprocess.run([sys.executable, "-c", LOOPS], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for line in result.stdout.splitlines():
        mesh, loops, inside, outside = json.loads(line)
        assert min(loops, outside) > 0
        assert not inside, mesh
    assert len(result.stdout.splitlines()) == 3


LOOPS = """
import functools, json, re
from benchmarks import meshes
import jax
from bertjax.config import MeshConfig, ModelConfig, OptimizerConfig, Phase
from bertjax.objectives.objective import abstract_batch, make_objective
from bertjax.parallel import sharding
from bertjax.training.optimizer import make_optimizer
from bertjax.training.start import abstract_state
from bertjax.training.step import train_step

model = ModelConfig(
    vocab_size=101, hidden_size=32, num_layers=1, num_heads=8, intermediate_size=64,
    max_positions=16, dtype="float32", head="causal", direction="left_to_right",
    next_sentence=False, pooler=False,
)
optimizer = make_optimizer(OptimizerConfig(), 100)
objective = make_objective(model)
for axes in ((8, 1, 1), (1, 8, 1), (4, 2, 1)):
    mesh = sharding.make_mesh(MeshConfig(*axes), jax.devices())
    with jax.set_mesh(mesh):
        state = abstract_state(model, optimizer, mesh)
        whole = sharding.replicated(mesh)
        key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=whole)
        step = jax.jit(
            functools.partial(train_step, objective, optimizer, 1),
            out_shardings=(jax.tree.map(lambda x: x.sharding, state), whole),
        )
        batch = abstract_batch(objective, Phase(1, 16, 16, 4), mesh)
        text = step.lower(state, batch, key).compile().as_text()
    loops = set(re.findall(r"body=%?([\\w.-]+)", text))
    here, inside, outside = "", [], []
    for line in text.splitlines():
        if found := re.match(r"%?([\\w.-]+) [(].*[{]$", line):
            here = found[1]
        if re.search(r" (all-reduce|reduce-scatter|all-gather)(-start)?[(]", line):
            (inside if here in loops else outside).append(line.strip()[:100])
    print(json.dumps([axes, len(loops), inside, len(outside)]))
"""

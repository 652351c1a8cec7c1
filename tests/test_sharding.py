import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from bertjax import cli
from bertjax.config import ConfigError, MeshConfig
from bertjax.models import abstract_params
from bertjax.models.partition import PARAMETER_AXES, logical_axes, path_name
from bertjax.training import sharding
from bertjax.training.sharding import make_mesh


@pytest.mark.parametrize("name", ["tiny", "base", "large"])
def test_every_parameter_matches_exactly_one_line(name):
    params = abstract_params(cli.load_recipe(name).model)
    paths = {
        path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    for path, shape in paths.items():
        assert len(logical_axes(path, shape)) == len(shape)
    for pattern, _ in PARAMETER_AXES:
        assert any(re.fullmatch(pattern, path) for path in paths), f"{pattern} matches nothing"


def test_an_unknown_parameter_raises():
    with pytest.raises(ValueError, match="'encoder/layer_0/gate/kernel' of shape"):
        logical_axes("encoder/layer_0/gate/kernel", (8, 8))
    with pytest.raises(ValueError, match="exactly one of its rank"):
        logical_axes("pooler/kernel", (8,))


def test_shardings_follow_the_rules():
    params = abstract_params(cli.load_recipe("tiny").model)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    specs = jax.tree.map(lambda s: s.spec, sharding.parameter_shardings(params, mesh))
    layer = specs["encoder"]["layer_0"]
    assert specs["embeddings"]["word"]["embedding"] == PartitionSpec("tensor", "fsdp")
    assert layer["attention"]["query"]["kernel"] == PartitionSpec("fsdp", "tensor")
    assert layer["attention"]["output"]["kernel"] == PartitionSpec("tensor", "fsdp")
    assert layer["mlp"]["output"]["bias"] == PartitionSpec(None)


def test_a_mesh_that_the_devices_do_not_fill_is_refused():
    with pytest.raises(ConfigError, match=r"needs a multiple of 3 devices, but there are 1"):
        make_mesh(MeshConfig(data=-1, fsdp=3), jax.devices()[:1])
    with pytest.raises(ConfigError, match=r"needs 4 devices, but there are 1"):
        make_mesh(MeshConfig(data=2, tensor=2), jax.devices()[:1])


def test_meshes_and_microbatches_give_the_same_losses():
    """On 8 simulated devices: data, fsdp and tensor, dropout on, eight parts and one."""
    result = subprocess.run(
        [sys.executable, "tests/mesh_losses.py"], capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    losses = {
        name: np.array(values.split(), float)
        for name, values in (line.split(":") for line in result.stdout.splitlines())
    }
    assert len(losses) == 6
    reference = losses.pop("1x1x1")
    assert reference[-1] < reference[0] - 0.1, "it learns"
    for name, values in losses.items():
        np.testing.assert_allclose(values, reference, rtol=0, atol=1e-5, err_msg=name)

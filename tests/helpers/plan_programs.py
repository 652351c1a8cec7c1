"""Prints as JSON what bertjax.planning reads from programs for 8 devices; see test_plan."""

import dataclasses
import json
import os

os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 "
    "--xla_backend_optimization_level=0"  # compiles three times faster
)

import jax
import jax.numpy as jnp
from folders import RECIPE
from jax.sharding import AxisType, PartitionSpec

from bertjax.cli import recipes
from bertjax.config import MeshConfig, Phase
from bertjax.plan import collectives, hlo, phase_plan, topology, work
from bertjax.plan.report import collectives_table

LOOP = 5


def all_collectives() -> list[dict]:
    """One of each kind in a loop of 5, on a mesh 2 x 4, of a float32 array [16, 8] a device."""
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), (AxisType.Auto,) * 2)

    def body(x, _):
        x = jax.lax.psum(x, "data")
        x = jax.lax.all_gather(x, "fsdp", tiled=True)  # [64, 8]
        x = jax.lax.psum_scatter(jnp.sin(x), "fsdp", tiled=True)  # [16, 8]
        x = jax.lax.all_to_all(jnp.cos(x), "fsdp", 0, 0, tiled=True)
        x = jax.lax.ppermute(jnp.tanh(x), "fsdp", [(i, (i + 1) % 4) for i in range(4)])
        return x, None

    rows = PartitionSpec(("data", "fsdp"))
    step = jax.shard_map(
        lambda x: jax.lax.scan(body, x, None, LOOP)[0],
        mesh=mesh,
        in_specs=rows,
        out_specs=rows,
        check_vma=False,
    )
    compiled = jax.jit(step).lower(jax.ShapeDtypeStruct((128, 8), jnp.float32)).compile()
    found = collectives.read_collectives(
        hlo.parse(compiled.as_text()), dict(mesh.shape), [0] * 4 + [1] * 4
    )
    return collectives_table(found)


def products() -> dict:
    """A product in two loops, one in the other, and the same without a loop."""

    def looped(x, w):
        def inner(x, _):
            return jnp.sin(x @ w), None

        def outer(x, _):
            return jax.lax.scan(inner, x, None, 3)[0], None

        return jax.lax.scan(outer, x, None, 4)[0]

    def once(x, w):
        return jnp.einsum("bij,bjk->bik", x, w)

    shape = jax.ShapeDtypeStruct((32, 32), jnp.float32)
    batched = jax.ShapeDtypeStruct((6, 32, 16), jnp.float32)
    other = jax.ShapeDtypeStruct((6, 16, 8), jnp.float32)
    a = jax.jit(looped).lower(shape, shape).compile()
    b = jax.jit(once).lower(batched, other).compile()
    return {
        "looped": work.matmul_flops(hlo.parse(a.as_text())),
        "looped by XLA": a.cost_analysis()["flops"],
        "batched": work.matmul_flops(hlo.parse(b.as_text())),
    }


def traffic() -> dict:
    """Bytes of an elementwise step, and of reading one row of a table in each of 7 turns."""

    def rows(table):
        def body(total, i):
            return total + jax.lax.dynamic_index_in_dim(table, i, keepdims=False), None

        return jax.lax.scan(body, jnp.zeros(table.shape[1:]), jnp.arange(7))[0]

    vector = jax.ShapeDtypeStruct((1_000_000,), jnp.float32)
    table = jax.ShapeDtypeStruct((7, 100_000), jnp.float32)
    added = jax.jit(lambda x: x + 1, donate_argnums=0).lower(vector).compile()
    read = jax.jit(rows).lower(table).compile()
    parsed = hlo.parse(added.as_text())
    return {
        "added": work.memory_bytes(parsed),
        "donated": sorted(parsed.donated),
        "read": work.memory_bytes(hlo.parse(read.as_text())),
    }


def steps() -> dict:
    """The real training step of a small model on several meshes."""
    target = topology.open_target("", 1)
    config = recipes.load_recipe(RECIPE)
    # No two sizes alike, so that a shape tells what it is of.
    model = dataclasses.replace(
        config.model,
        vocab_size=260,
        hidden_size=24,
        num_layers=2,
        num_heads=4,
        intermediate_size=48,
    )
    config.phases = (Phase(num_steps=10, max_length=24, global_batch_size=40),)
    result = {}
    for name, axes, parts, scan, remat, optimizer in (
        ("data", (8, 1, 1), 1, False, "none", "bert_adamw"),
        ("data, scanned in parts", (8, 1, 1), 5, True, "none", "bert_adamw"),
        ("fsdp", (1, 8, 1), 1, True, "none", "bert_adamw"),
        ("tensor", (2, 1, 4), 1, False, "none", "bert_adamw"),
        ("remat", (8, 1, 1), 1, True, "layer", "bert_adamw"),
        ("arrays that no step reads", (8, 1, 1), 1, False, "none", "adafactor"),
    ):
        layout = dataclasses.replace(
            config,
            mesh=MeshConfig(*axes),
            num_microbatches=parts,
            model=dataclasses.replace(model, scan_layers=scan, remat=remat, dtype="float32"),
            optimizer=dataclasses.replace(config.optimizer, name=optimizer),
        )
        plan = phase_plan.plan_phase(layout, 0, target)
        result[name] = {
            "flops": plan.flops,
            "model_flops": plan.useful_flops,
            "bytes": plan.traffic_bytes,
            "fits": plan.fits,
            "memory": plan.memory,
            "checks": plan.checks,
            "collectives": collectives_table(plan.collectives),
        }
    return result


if __name__ == "__main__":
    print(
        json.dumps(
            {
                "collectives": all_collectives(),
                "products": products(),
                "traffic": traffic(),
                "steps": steps(),
            }
        )
    )

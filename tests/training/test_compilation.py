"""How many microbatches a step takes on a CPU, and what is refused before anything is compiled."""

import jax
import pytest
from folders import RECIPE

from bertjax.cli import recipes
from bertjax.config import MeshConfig, Phase
from bertjax.objectives.objective import abstract_batch, make_objective
from bertjax.parallel.sharding import make_mesh
from bertjax.training import compilation
from bertjax.training.compilation import DoesNotFitError, compile_train_step, program_bytes
from bertjax.training.optimizer import make_optimizer
from bertjax.training.start import abstract_state


def compile_step(rows, memory, monkeypatch, **changes):
    """Compiles the step of rows of 64 tokens; returns it, its parts and what was tried."""
    config = recipes.load_recipe(RECIPE)
    config.model.dtype, config.model.num_layers = "float32", 1
    for name, value in changes.items():
        setattr(config, name, value)
    config.phases = (Phase(10, 64, rows),)
    (phase,) = config.resolved_phases()
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer = make_optimizer(config.optimizer, 10)
    objective = make_objective(config.model)
    tried = []
    lower = compilation.train_step

    def traced(objective, optimizer, parts, *arguments):
        tried.append(parts)
        return lower(objective, optimizer, parts, *arguments)

    monkeypatch.setattr(compilation, "train_step", traced)
    with jax.set_mesh(mesh):
        compiled, parts = compile_train_step(
            config,
            phase,
            objective,
            optimizer,
            abstract_state(config.model, optimizer, mesh),
            abstract_batch(objective, phase, mesh),
            mesh,
            memory,
        )
    return compiled, parts, tried


@pytest.mark.slow
def test_parts_of_a_cpu_are_small_however_large_the_memory(monkeypatch):
    _, parts, tried = compile_step(128, 10**12, monkeypatch)
    assert parts == 4  # 32 rows of 64 tokens
    assert tried == [4]
    _, parts, _ = compile_step(128, 10**12, monkeypatch, num_microbatches=1)
    assert parts == 1  # as it is told


@pytest.mark.slow
def test_a_cpu_plans_for_half_of_the_memory(monkeypatch, caplog):
    whole = sum(program_bytes(compile_step(32, 10**12, monkeypatch)[0]).values())
    compiled, parts, _ = compile_step(32, int(1.6 * whole), monkeypatch)
    assert parts > 1
    assert sum(program_bytes(compiled).values()) < 0.8 * whole
    assert not caplog.records
    # Not even one row fits into half of it: it is tried, and said.
    smallest, _, _ = compile_step(32, 10**12, monkeypatch, num_microbatches=32)
    memory = int(1.8 * sum(program_bytes(smallest).values()))
    assert compile_step(32, memory, monkeypatch)[1] == 32
    assert "more than half of the memory" in caplog.text


def test_a_batch_that_cannot_fit_is_refused_before_anything_is_compiled(monkeypatch):
    monkeypatch.setattr(compilation, "train_step", None)
    with pytest.raises(
        DoesNotFitError,
        match=r"9,000,000 rows of 64 tokens, however they are cut, need 0.00 GB per device for "
        r"parameters and moments and [\d.]+ GB for the batches .*, and a device has 24.00 GB: take "
        r"fewer rows \(config.data.global_batch_size\)",
    ):
        compile_step(9_000_000, 24 * 10**9, monkeypatch)


@pytest.mark.slow
def test_few_programs_are_compiled_where_the_guess_was_too_low(monkeypatch):
    monkeypatch.setattr(compilation, "_guessed_bytes", lambda *arguments: 0.0)
    memory = int(
        2.2
        * sum(program_bytes(compile_step(32, 10**12, monkeypatch, num_microbatches=32)[0]).values())
    )
    _, parts, tried = compile_step(32, memory, monkeypatch)
    assert tried[0] == 1
    assert tried[-1] == parts > 4
    assert len(tried) <= 3  # of 6 that divide the rows


def test_a_state_that_cannot_fit_is_refused_with_advice_that_helps(monkeypatch):
    monkeypatch.setattr(compilation, "train_step", None)
    with pytest.raises(DoesNotFitError, match=r"shard the parameters \(config.mesh.fsdp\)"):
        compile_step(4, 200_000, monkeypatch)


@pytest.mark.slow
def test_a_given_number_of_microbatches_is_taken_as_it_is_told(monkeypatch):
    assert compile_step(4, 200_000, monkeypatch, num_microbatches=2)[1] == 2

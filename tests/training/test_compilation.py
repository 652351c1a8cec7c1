"""How many microbatches a step takes on a CPU, and what is refused before anything is compiled."""

import functools

import jax
import numpy as np
import pytest
from folders import RECIPE

from bertjax.cli import recipes
from bertjax.config import MeshConfig, Phase
from bertjax.models import init_params
from bertjax.objectives.objective import abstract_batch, make_objective
from bertjax.parallel.sharding import make_mesh, replicated
from bertjax.training import compilation
from bertjax.training.compilation import DoesNotFitError, compile_train_step, program_bytes
from bertjax.training.optimizer import make_optimizer, rate_table
from bertjax.training.start import abstract_state
from bertjax.training.step import TrainState


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

    def traced(objective, optimizer, parts, *arguments, **settings):
        tried.append(parts)
        return lower(objective, optimizer, parts, *arguments, **settings)

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


def compile_tabled(learning_rate, warmup_steps, total_steps, rows=4):
    """A step of one layer whose rates are a table; the table, and the mesh."""
    config = recipes.load_recipe(RECIPE)
    config.model.dtype, config.model.num_layers = "float32", 1
    config.optimizer.learning_rate = learning_rate
    config.optimizer.warmup_steps = warmup_steps
    config.phases = (Phase(total_steps, 16, rows),)
    (phase,) = config.resolved_phases()
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer = make_optimizer(config.optimizer, total_steps)
    objective = make_objective(config.model)
    rates = rate_table(optimizer.schedule, total_steps)
    arguments = (
        config,
        phase,
        objective,
        optimizer,
        abstract_state(config.model, optimizer, mesh),
        abstract_batch(objective, phase, mesh),
        mesh,
    )
    with jax.set_mesh(mesh):
        compiled, _ = compile_train_step(*arguments, rates=jax.device_put(rates, replicated(mesh)))
    return compiled, rates, optimizer, arguments


@pytest.mark.slow
def test_a_program_that_reads_its_rates_is_one_for_all_schedules():
    compiled, rates, optimizer, _ = compile_tabled(1e-3, 2, 10)
    again, others, _, _ = compile_tabled(3e-4, 5, 3_000)
    assert again is compiled
    assert not np.array_equal(rates, others)
    assert compile_tabled(1e-3, 2, 10, rows=6)[0] is not compiled
    assert rate_table(optimizer.schedule, 4_097).shape == (8_192,)


@pytest.mark.slow
def test_a_program_that_reads_its_rates_computes_what_one_with_constants_does():
    compiled, rates, optimizer, arguments = compile_tabled(1e-2, 2, 10)
    model, phase, objective, mesh = arguments[0].model, *arguments[1:3], arguments[-1]
    states = []
    with jax.set_mesh(mesh):
        constant, _ = compile_train_step(*arguments)
        fields = objective.fields(phase)
        batch = {name: np.ones(shape, dtype) for name, (shape, dtype) in fields.items()}
        for step_function in (functools.partial(compiled, rates), constant):
            params = init_params(model, 0)
            state = TrainState(np.int32(0), params, optimizer.transformation.init(params))
            for _ in range(3):
                state, info = step_function(state, batch, jax.random.key(0))
            states.append((state, info["learning_rate"]))
    assert states[0][1] == states[1][1] > 0
    before = jax.tree.leaves(init_params(model, 0))
    leaves = [jax.tree.leaves(state.params) for state, _ in states]
    for first, second in zip(*leaves, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)
    assert any(not np.allclose(x, y, atol=1e-3) for x, y in zip(leaves[0], before, strict=True))

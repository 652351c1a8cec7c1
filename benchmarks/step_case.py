"""Training steps by name: their configuration, their program on one device, rows, and running it.

A case is model:length:rows. The model is a recipe of configs/, `novels` (the network of
docs/results/novels_wiki_gpu.py, but with dropout) or `minilm` (the sizes of all-MiniLM-L6-v2).
With `:packed` rows hold several pairs; with `:span` the model is fine-tuned, with the head of
SQuAD. Does not import TensorFlow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks.train_step import DEPTH, make_batch, make_config, make_packed_batches
from bertjax.config import Config, ConfigError, ModelConfig, OptimizerConfig, closest
from bertjax.heads import HEADS
from bertjax.models import resolve_model
from bertjax.objectives.objective import Objective, abstract_batch, make_objective
from bertjax.parallel.sharding import make_mesh, replicated
from bertjax.plan.program import make_state
from bertjax.training.compilation import compile_train_step
from bertjax.training.optimizer import make_optimizer
from bertjax.training.step import TrainState

_SIX_LAYERS = {"hidden_size": 384, "num_layers": 6, "intermediate_size": 1_536}
SIZES: dict[str, dict[str, Any]] = {  # beside the recipes
    "novels": {**_SIX_LAYERS, "vocab_size": 8_192, "num_heads": 6},
    "minilm": {**_SIX_LAYERS, "num_heads": 12},
}
REAL_SHARE = 0.45  # of the tokens of SQuAD's rows of 384: docs/design/speed.md


def step_config(case: str, fields: Iterable[str] = (), backend: str = "") -> Config:
    """The configuration of a case, `model` resolved, one microbatch.

    Args:
      case: model:length:rows, and `packed` or `span` after it.
      fields: NAME=VALUE of the model.
      backend: that it is for; "" = that of this process.

    Raises:
      ConfigError: the case is not of that form, or a field does not exist.
    """
    name, *numbers = case.split(":")
    kind = numbers.pop() if len(numbers) == 3 else ""
    if len(numbers) != 2 or kind not in ("", "packed", "span"):
        raise ConfigError(
            f"case {case!r}: expected model:length:rows, and :packed or :span after it"
        )
    recipe = "base" if name in SIZES else name
    length, rows = map(int, numbers)
    config = make_config(recipe, length, rows, DEPTH if kind == "packed" else 1)
    model = dataclasses.replace(config.model, dtype="auto", **SIZES.get(name, {}))
    if kind == "span":
        model = dataclasses.replace(model, head="span", pooler=False)
        config = dataclasses.replace(config, optimizer=OptimizerConfig("adamw", warmup_steps=0))
    model = dataclasses.replace(model, **dict(map(_field, fields)))
    model = resolve_model(model, backend or jax.default_backend())
    return dataclasses.replace(config, model=model, num_microbatches=1)


def _field(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    defaults = dataclasses.asdict(ModelConfig())
    if name not in defaults:
        raise ConfigError(f"{text}: model.{name} does not exist; {closest(name, defaults)}")
    kind = type(defaults[name])
    return name, value == "true" if kind is bool else kind(value)


def objective_and_batch(
    config: Config, mesh: Mesh
) -> tuple[Objective, dict[str, jax.ShapeDtypeStruct]]:
    """What the step minimises, and the shapes of its batch."""
    (phase,) = config.resolved_phases()
    objective = make_objective(config.model)
    return objective, abstract_batch(objective, phase, mesh)


def compile_step(config: Config, mesh: Mesh) -> Any:
    """Compiles the step that `bertjax.train` or `bertjax.finetune` would run on the mesh."""
    (phase,) = config.resolved_phases()
    objective, batch = objective_and_batch(config, mesh)
    optimizer = make_optimizer(config.optimizer, config.total_steps)
    with jax.set_mesh(mesh):
        state = make_state(config, mesh)
        return compile_train_step(
            config, phase, objective, optimizer, state, batch, mesh, memory=0
        )[0]


def activation_size(config: Config) -> tuple[int, int]:
    """Tokens of a batch, and the width of one: what `program_account.account` is told."""
    (phase,) = config.resolved_phases()
    return phase.global_batch_size * phase.max_length, config.model.hidden_size


def make_rows(config: Config) -> dict[str, np.ndarray]:
    """A batch from seed 0: see benchmarks.train_step; of fine-tuning, padded as SQuAD's rows."""
    (phase,) = config.resolved_phases()
    if HEADS[config.model.head].trained_on == "store":
        return (make_packed_batches if phase.packing_depth > 1 else _one)(config)[0]
    b, t = phase.global_batch_size, phase.max_length
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, round(2 * REAL_SHARE * t), b, endpoint=True)[:, None]
    return {
        "input_ids": rng.integers(5, config.model.vocab_size, (b, t), np.int32),
        "token_type_ids": (np.arange(t) >= lengths // 8).astype(np.int32),
        "attention_mask": (np.arange(t) < lengths).astype(np.int32),
        "row_weights": np.ones(b, np.float32),
        "start_positions": rng.integers(0, lengths[:, 0]).astype(np.int32),
        "end_positions": rng.integers(0, lengths[:, 0]).astype(np.int32),
    }


class Runner:
    """The step of a configuration on the first device, and the state that it changes.

    Attributes:
      program: the compiled step.
      state: `TrainState`, after `reset` that of step 0.
    """

    def __init__(self, config: Config):
        """Compiles the step and puts a batch on the device."""
        mesh = make_mesh(config.mesh, jax.devices()[:1])
        self.program = compile_step(config, mesh)
        rows = make_rows(config)
        _, shapes = objective_and_batch(config, mesh)
        self._batch = {name: jax.device_put(rows[name], x.sharding) for name, x in shapes.items()}
        self._whole = replicated(mesh)
        self._key = jax.device_put(jax.random.key(0), self._whole)
        self._first = make_first_state(config, mesh)
        self.reset()

    def reset(self) -> None:
        """Goes back to the first state."""
        self.state: Any = None  # its memory first
        # Copied, also on a CPU: the step overwrites what it is given.
        self.state = jax.device_put(self._first, self._whole, may_alias=False)

    def run(self, num_steps: int) -> float:
        """Takes steps and waits for the last; returns its loss."""
        for _ in range(num_steps):
            self.state, metrics = self.program(self.state, self._batch, self._key)
        return float(metrics["loss"])


def make_first_state(config: Config, mesh: Mesh) -> TrainState:
    """Parameters from seed 0, and moments of 0, in NumPy: a step takes the device's for itself.

    Drawn by JAX they would take a program for each shape, most of a short lease's start.
    """
    rng = np.random.default_rng(0)

    def draw(path: Any, x: jax.ShapeDtypeStruct) -> np.ndarray:
        match path[-1].key:
            case "scale":
                return np.ones(x.shape, x.dtype)
            case "bias":
                return np.zeros(x.shape, x.dtype)
        return config.model.initializer_range * rng.standard_normal(x.shape, np.float32)

    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), make_state(config, mesh))
    return state._replace(params=jax.tree.map_with_path(draw, state.params))


def _one(config: Config) -> list[dict[str, np.ndarray]]:
    return [make_batch(config)]

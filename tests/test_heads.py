"""The records of heads and objectives: whole, and the only place that knows the names."""

import ast
import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
from folders import REPOSITORY

from bertjax.config import ConfigError, MeshConfig, ModelConfig, Phase
from bertjax.heads import EMBED, HEADS, heads_trained_on, of_width, resolve
from bertjax.models import abstract_params, init_params, make_model
from bertjax.objectives.fine_tuning import LOSSES
from bertjax.objectives.objective import abstract_batch, make_objective
from bertjax.parallel.sharding import make_mesh
from bertjax.tasks.task import Task
from bertjax.training.step import evaluation_step

ROOT = REPOSITORY / "bertjax"
RECORDS = {"heads.py"}
# Words that mean something else in these files.
OTHERS = {
    ("config/schema.py", "encoder"): "what the value means, beside the others",
    ("config/schema.py", "span"): "a way of masking",
    ("extensions.py", "encoder"): "the parameters of the layers",
    ("models/inspection.py", "encoder"): "the parameters of the layers",
    ("training/optimizer.py", "encoder"): "the parameters of the layers",
    ("weights/initial_params.py", "encoder"): "the parameters of the layers",
}
# Rooms that run any objective: no name of a metric or an array of one stands there.
ANY_OBJECTIVE = ("training", "plan", "reports", "pretraining", "fine_tuning", "checkpoints")
TRAINED = heads_trained_on("store") + heads_trained_on("task")
SMALL = ModelConfig(
    vocab_size=20,
    hidden_size=8,
    num_layers=1,
    num_heads=2,
    intermediate_size=8,
    max_positions=16,
    dtype="float32",
    num_labels=3,
)


def with_head(name):
    num_labels = HEADS[name].num_labels or SMALL.num_labels
    return dataclasses.replace(SMALL, head=name, num_labels=num_labels)


def compared(tree):
    """The strings that a file compares with, matches or looks up in a dict that it writes."""
    for node in ast.walk(tree):
        parts = []
        match node:
            case ast.Compare():
                parts = [node.left, *node.comparators]
            case ast.MatchValue():
                parts = [node.value]
            case ast.Subscript():
                parts = [node.slice]
            case ast.Dict():
                parts = [key for key in node.keys if key is not None]
            case ast.Call(func=ast.Attribute(attr="get" | "startswith")):
                parts = node.args
        for part in parts:
            members = part.elts if isinstance(part, (ast.Tuple, ast.List, ast.Set)) else [part]
            for member in members:
                if isinstance(member, ast.Constant) and isinstance(member.value, str):
                    yield member.value, member.lineno


def source_files():
    for path in sorted(ROOT.rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


def test_no_file_but_the_records_compares_the_name_of_a_head():
    found = [
        f"{path}:{line}: {name!r}"
        for path, tree in source_files()
        if path not in RECORDS
        for name, line in compared(tree)
        if name in HEADS and (path, name) not in OTHERS
    ]
    assert not found, "ask bertjax.heads.HEADS instead"


def test_rooms_of_any_objective_name_none():
    metrics = {m.name for name in TRAINED for m in make_objective(with_head(name)).reported}
    prefixes = {name.split("_")[0] for name in metrics if "_" in name}
    assert prefixes >= {"mlm", "nsp"}
    word = re.compile(rf"\b({'|'.join(prefixes)})(_|\b)", re.IGNORECASE)
    found = [
        f"{path}:{node.lineno}: {node.value[:60]!r}"
        for path, tree in source_files()
        if path.split("/")[0] in ANY_OBJECTIVE
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and word.search(str(node.value))
    ]
    assert not found, "the objective brings its own names: bertjax.objectives.objective.Metric"


@pytest.mark.parametrize("name", HEADS)
def test_what_a_record_names_is_there(name):
    head = HEADS[name]
    assert isinstance(make_model(with_head(name)), resolve(head.module))
    assert bool(head.objective) == (head.trained_on != "nothing")
    is_of_task = head.trained_on == "task"
    assert bool(head.outputs) == bool(head.answers) == bool(head.task) == is_of_task
    assert is_of_task == (head.loss in LOSSES)
    assert set(head.outputs.values()) | {head.answer_weights} - {""} == set(head.answers)
    if is_of_task:
        assert issubclass(resolve(head.task), Task)
    assert {name.split("/")[0] for name in abstract_params(with_head(name))} == {
        "embeddings",
        "encoder",
        "pooler",
        *head.layers,
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_an_objective_runs_on_the_batch_that_it_describes(name):
    objective = make_objective(with_head(name))
    phase = Phase(1, 8, 2, 4, 1)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    batch = {
        field: np.ones(x.shape, x.dtype)
        for field, x in abstract_batch(objective, phase, mesh).items()
    }
    step = jax.jit(functools.partial(evaluation_step, objective))
    sums = step(init_params(with_head(name), 0), batch, np.int32(0))
    assert np.isfinite(objective.loss(sums, objective.denominators(batch)))
    assert set(objective.metrics(sums)) == {metric.name for metric in objective.reported}
    assert objective.row_flops(phase) > 0


def test_what_an_objective_draws_in_an_evaluation_depends_on_the_row_alone():
    """In batches of any size, and not on dropout's keys, which are not there."""

    def sums(params, batch, dropout_keys, sampling_keys):
        assert dropout_keys is None
        return {"drawn": jax.vmap(jax.random.uniform)(sampling_keys)}

    objective = make_objective(SMALL)._replace(sums=sums)
    rows = {"input_ids": np.zeros((6, 4), np.int32)}
    whole = evaluation_step(objective, {}, rows, np.int32(0))["drawn"]
    part = {"input_ids": np.zeros((2, 4), np.int32)}
    parts = [evaluation_step(objective, {}, part, np.int32(i))["drawn"] for i in (0, 2, 4)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    assert len(set(whole.tolist())) == 6


def test_a_head_that_nothing_trains_has_no_objective():
    with pytest.raises(ConfigError, match=r"config\.model\.head = 'encoder': has no objective"):
        make_objective(with_head("encoder"))


def test_heads_of_one_architecture_are_told_apart_by_their_labels():
    heads = [h for h in HEADS.values() if "BertForSequenceClassification" in h.architectures]
    assert [of_width(heads, n).name for n in (1, 2, 3)] == [
        "regression",
        "classification",
        "classification",
    ]


def test_what_a_head_can_do():
    verbs = ("fill-mask", "next-sentence", "score", EMBED)
    assert HEADS["pretraining"].can(next_sentence=True) == verbs
    assert HEADS["pretraining"].can(next_sentence=False) == ("fill-mask", "score", EMBED)
    assert HEADS["causal"].can(next_sentence=False) == ("score", EMBED)
    assert HEADS["encoder"].can(next_sentence=True) == (EMBED,)
    assert HEADS["span"].can(next_sentence=True) == ("answer", EMBED)

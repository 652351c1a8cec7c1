import dataclasses
import json
import subprocess
import sys
import typing

import pytest

from bertjax.cli import recipes
from bertjax.config import (
    Config,
    ConfigError,
    DataConfig,
    FineTuningConfig,
    OptimizerConfig,
    Phase,
    differences,
    is_within,
    may_change,
)
from bertjax.config.checks import validate
from bertjax.heads import HEADS


def train(*arguments: str, cwd=None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "bertjax.train", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
    )


@pytest.mark.parametrize("name", recipes.recipe_names())
def test_recipes_are_valid_and_survive_json(name):
    config = recipes.load_recipe(name)
    validate(config)
    assert Config.from_json(config.to_json()) == config


def test_base_is_the_papers():
    config = recipes.load_recipe("base")
    first, second = config.resolved_phases()
    assert (first.num_steps, first.max_length, first.max_predictions) == (900_000, 128, 20)
    assert (second.num_steps, second.max_length, second.max_predictions) == (100_000, 512, 80)
    assert first.global_batch_size == second.global_batch_size == 256
    assert config.total_steps == config.last_step == 1_000_000


def test_num_steps_stops_early_but_leaves_the_schedule():
    config = recipes.load_recipe("base")
    config.num_steps = 30
    validate(config)
    assert (config.last_step, config.total_steps) == (30, 1_000_000)


def test_a_run_without_phases_takes_num_steps():
    config = Config(num_steps=5, data=DataConfig(global_batch_size=8, max_length=64))
    config.optimizer.warmup_steps = 0
    validate(config)
    assert config.resolved_phases() == (Phase(5, 64, 8, 12, 1, 0.15),)


def test_a_phase_has_the_mask_rate_of_the_data_or_its_own():
    config = Config(
        data=DataConfig(max_length=128, max_predictions=24, mask_rate=0.15),
        phases=(
            Phase(9),
            Phase(9, mask_rate=0.4),
            Phase(9, mask_rate=0.4, max_predictions=60),
            Phase(9, mask_rate=0.4, packing_depth=4),
        ),
        optimizer=OptimizerConfig(warmup_steps=0),
    )
    validate(config)
    found = [(phase.mask_rate, phase.max_predictions) for phase in config.resolved_phases()]
    # 0.4 * 128 = 51.2; 0.4 * 128 + 4 * 0.5 = 53.2; rounded up to a multiple of 4.
    assert found == [(0.15, 24), (0.4, 52), (0.4, 60), (0.4, 56)]
    config.phases[3].max_predictions = 53
    with pytest.raises(ConfigError, match=r"phases\[3\].max_predictions = 53, but .* 54 masks"):
        validate(config)


def test_the_warmup_ends_before_the_decay_begins():
    optimizer = OptimizerConfig(
        schedule="warmup_stable_decay", decay_share=0.25, warmup_steps=75, learning_rate=1e-3
    )
    config = Config(num_steps=100, optimizer=optimizer)
    validate(config)
    optimizer.warmup_steps = 76
    message = r"warmup_steps = 76, but the decay begins at step 75, the last 0.25 of 100 steps"
    with pytest.raises(ConfigError, match=message):
        validate(config)
    optimizer.decay_share = 0.24  # as the error says
    validate(config)


# Every field: whether a run may be resumed with another value of it. A new field has to be put here
# and, where it may change, marked in schema.py.
MAY_CHANGE = """
num_steps init_from continue_from num_microbatches profile
model.dtype model.factors model.scan_layers model.attention model.layer_norm
model.activation_layout model.remat model.lookup_gradient
data.store data.stores data.eval_store data.num_threads data.prefetch_batches
mesh.data mesh.fsdp mesh.tensor mesh.shard_optimizer
checkpoint.every_steps checkpoint.every_minutes checkpoint.keep
eval.every_steps eval.max_rows eval.mask_rate eval.masking eval.short_row_rate eval.max_length
log.every_steps log.tensorboard
task.train task.eval
"""
MAY_NOT_CHANGE = """
seed
model.vocab_size model.hidden_size model.num_layers model.num_heads model.intermediate_size
model.max_positions model.num_token_types model.dropout_rate model.attention_dropout_rate
model.gelu model.layer_norm_eps model.initializer_range model.next_sentence model.pooler
model.head model.num_labels model.encoder model.direction
data.global_batch_size data.max_length data.max_predictions data.mask_rate data.masking
data.short_row_rate data.shuffle_window data.packing_depth
phases[0].num_steps phases[0].max_length phases[0].global_batch_size phases[0].max_predictions
phases[0].packing_depth phases[0].mask_rate
optimizer.name optimizer.learning_rate optimizer.warmup_steps optimizer.schedule
optimizer.decay_steps optimizer.decay_share optimizer.decay_shape optimizer.end_learning_rate
optimizer.power optimizer.weight_decay optimizer.b1 optimizer.b2 optimizer.eps
optimizer.max_grad_norm optimizer.layer_decay optimizer.frozen_layers
task.name task.options task.max_length task.batch_size task.num_epochs
"""


def field_names(node, prefix=""):
    for name, hint in typing.get_type_hints(node).items():
        node = Phase if name == "phases" else hint
        name += "[0]" if name == "phases" else ""
        if dataclasses.is_dataclass(node):
            yield from field_names(node, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_field_says_whether_it_may_change_on_resume():
    changeable = {n for n in field_names(FineTuningConfig) if may_change(FineTuningConfig, n)}
    assert changeable == set(MAY_CHANGE.split())
    assert set(field_names(FineTuningConfig)) - changeable == set(MAY_NOT_CHANGE.split())
    assert not may_change(FineTuningConfig, "task.options.labels[0]")
    assert not may_change(Config, "model.attention_of_another_version")


def test_a_field_is_within_its_section_and_not_within_one_that_begins_alike():
    assert is_within("mesh.fsdp", ["seed", "mesh"])
    assert is_within("phases[0].num_steps", ["phases"])
    assert is_within("model.head", ["model.head"])
    assert not is_within("model.heads", ["model.head", "mode"])
    assert not is_within("model", ["model.head"])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seed", -1, "config.seed = -1: expected a number, at least 0 and below 4294967296"),
        ("seed", 1.5, "config.seed = 1.5 is of type float; expected int"),
        ("seed", True, "is of type bool; expected int"),
        ("num_steps", 10**9, "num_steps only stops a run early"),
        ("profile", "100", "config.profile = '100': expected START:END"),
        ("profile", "10:10", "the first the smaller one"),
        ("profile", "10:1000000000", "config.profile = '10:1000000000': the run ends at step"),
        ("num_microbatches", 3, "is not divisible by config.num_microbatches = 3"),
        ("model.num_heads", 5, "config.model.hidden_size = 128 is not divisible by"),
        ("model.gelu", "tahn", "did you mean 'tanh'"),
        ("model.attention", "palas", "did you mean 'pallas'"),
        ("model.vocab_size", 0, "config.model.vocab_size = 0: expected a number, at least 1"),
        ("model.num_token_types", 1, "sentence pairs need 2"),
        (
            "model.dropout_rate",
            1.0,
            "config.model.dropout_rate = 1.0: expected a number, at least 0 and",
        ),
        ("model.head", "tagger", "did you mean 'tagging'?"),
        ("model.head", "tagging", "config.model.num_labels = 0: tagging needs 2 at least"),
        ("model.head", "causal", "set config.model.next_sentence=false"),
        ("model.pooler", False, "'pretraining' reads the pooled output, for next sentence"),
        ("data.max_length", 129, "is beyond config.model.max_positions = 128"),
        (
            "data.max_length",
            4,
            "config.data.max_length = 4: expected a number of tokens, at least 8",
        ),
        ("data.max_predictions", 128, "is not below its max_length"),
        ("data.masking", "words", "data.masking = 'words' is not known"),
        (
            "data.mask_rate",
            0.0,
            "config.data.mask_rate = 0.0: expected a number, above 0 and below 1",
        ),
        (
            "eval.mask_rate",
            1.0,
            "config.eval.mask_rate = 1.0: expected a number, above 0 and below 1",
        ),
        ("eval.masking", "spam", "did you mean 'span'?"),
        ("eval.short_row_rate", 1.0, "config.eval.short_row_rate = 1.0: expected a number, at"),
        (
            "eval.max_length",
            129,
            "config.eval.max_length = 129 is beyond config.model.max_positions",
        ),
        (
            "eval.max_length",
            7,
            "config.eval.max_length = 7: expected a number of tokens, at least 8",
        ),
        ("data.shuffle_window", 100, "config.data.shuffle_window = 100: expected a number of rows"),
        ("data.shuffle_window", -2, "config.data.shuffle_window = -2: expected a number of rows"),
        ("data.store", 3, "config.data.store = 3 is of type int; expected str"),
        ("optimizer.name", "adam", "did you mean 'adamw'"),
        ("optimizer.warmup_steps", 10**6, "is beyond the schedule's"),
        ("optimizer.schedule", "warmup_stable", "did you mean 'warmup_stable_decay'?"),
        ("optimizer.decay_share", 1.0, "config.optimizer.decay_share = 1.0: expected a number, ab"),
        ("optimizer.decay_shape", "sqrt", "did you mean '1-sqrt'?"),
        ("optimizer.learning_rate", 0.0, "config.optimizer.learning_rate = 0.0: expected"),
        ("checkpoint.every_steps", 0, "config.checkpoint.every_steps = 0: expected"),
        (
            "checkpoint.keep",
            -1,
            "keep = -1: expected a number of checkpoints, at least 1, or 0 (all)",
        ),
        ("mesh.fsdp", 0, "config.mesh.fsdp = 0: expected a number of devices, at least 1, or -1"),
        ("mesh.fsdp", -1, "only one axis can be -1"),
        ("phases", (Phase(num_steps=0),), "config.phases[0].num_steps = 0: expected a number"),
        (
            "phases",
            (Phase(num_steps=9, mask_rate=1.0),),
            "config.phases[0].mask_rate = 1.0: expected a number, above 0 and below 1, or 0 (as in",
        ),
        ("phases", ({"num_steps": 3},), "config.phases[0] = {'num_steps': 3} is of type dict"),
        ("phases", (), "the run has no length"),
    ],
)
def test_what_cannot_work_is_refused(field, value, message):
    config = recipes.load_recipe("tiny")
    *parents, name = field.split(".")
    section = config
    for parent in parents:
        section = getattr(section, parent)
    setattr(section, name, value)
    with pytest.raises(ConfigError) as error:
        validate(config)
    assert message in str(error.value)


def test_rows_of_pairs_for_a_head_without_next_sentence_are_refused(monkeypatch):
    head = dataclasses.replace(HEADS["pretraining"], verbs=(), pooled="never")
    monkeypatch.setitem(HEADS, "pretraining", head)
    config = recipes.load_recipe("tiny")
    with pytest.raises(ConfigError, match=r"next_sentence = True, but .* does not learn from it"):
        validate(config)
    config.model.next_sentence = False
    validate(config)


def test_an_int_may_stand_for_a_float():
    config = recipes.load_recipe("tiny")
    config.optimizer.power = 1
    validate(config)
    assert config == recipes.load_recipe("tiny")


def test_json_with_an_unknown_field_names_the_closest():
    values = dataclasses.asdict(recipes.load_recipe("tiny"))
    values["optimizer"]["learning_rat"] = 1.0
    with pytest.raises(ConfigError, match=r"config.optimizer.learning_rat .*mean 'learning_rate'"):
        Config.from_json(json.dumps(values))


def test_differences_are_dotted():
    old, new = recipes.load_recipe("base"), recipes.load_recipe("base")
    new.phases[1].num_steps = 7
    new.optimizer.learning_rate = 1.0
    assert differences(old, new) == {
        "phases[1].num_steps": (100_000, 7),
        "optimizer.learning_rate": (1e-4, 1.0),
    }


def test_recipes_are_found_from_any_folder(tmp_path):
    result = train(
        "--config=base",
        "--config.optimizer.learning_rate=2e-4",
        "--config.phases[1].num_steps=5",
        "--noconfig.log.tensorboard",
        "--print_config",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    config = Config.from_json(result.stdout)
    assert config.optimizer.learning_rate == 2e-4
    assert config.phases[1].num_steps == 5
    assert not config.log.tensorboard
    assert config.num_steps == 0


def test_phases_can_be_given_whole(tmp_path):
    phases = "({'num_steps': 9, 'max_length': 64}, {'num_steps': 2})"
    result = train(
        "--config=tiny",
        f"--config.phases={phases}",
        "--config.optimizer.warmup_steps=1",
        "--print_config",
    )
    assert result.returncode == 0, result.stderr
    assert Config.from_json(result.stdout).phases == (
        Phase(num_steps=9, max_length=64),
        Phase(num_steps=2),
    )


def test_a_recipe_of_ones_own(tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from bertjax.cli import load_recipe\n\n\ndef get_config():\n"
        "    config = load_recipe('tiny')\n    config.seed = 7\n    return config\n"
    )
    result = train("--config=mine.py", "--print_config", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert Config.from_json(result.stdout).seed == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=tinny"], "--config=tinny: no recipe of that name; did you mean 'tiny'?"),
        (["--config=no/such.py"], "no such file"),
        ([], "--config is missing: choose from base, large, small, tiny"),
        (["--config=tiny", f"--workdir={__file__}"], "is a file; name a folder"),
        (
            ["--config=base", "--config.data.max_length=64"],
            "--config.data.max_length: the recipe's phases have their own ([128, 512]); set "
            "--config.phases[0].max_length=",
        ),
        (["--config=tiny", "--config.optimiser.name=lamb"], "did you mean 'optimizer'?"),
        (["--config=tiny", "--config.optimizer.nam=lamb"], "did you mean 'name'?"),
        (["--config=tiny", "--config.optimizer=lamb"], "--config.optimizer is a group of fields"),
        (["--config=tiny", "--config.seed=abc"], "--config.seed=abc: invalid literal for int()"),
        (["--config=tiny", "--config.phases[3].num_steps=1"], "fewer phases than that"),
        (["--config=tiny", "--workdirr=x"], "did you mean 'workdir'?"),
        (["--config=tiny", "extra"], "unexpected argument 'extra'"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_no_work(arguments, message, tmp_path):
    result = train(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []

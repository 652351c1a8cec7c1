"""What the fields of the configuration say of themselves, and who reads it."""

import copy
import dataclasses
import json
import pickle
import re
import subprocess
import sys

import pytest
from folders import GOLDENS, REPOSITORY

from bertjax.cli import recipes
from bertjax.cli.config_help import config_help
from bertjax.config import Config, ConfigError, FineTuningConfig, Phase, schema
from bertjax.config.checks import validate
from bertjax.config.description import sections
from bertjax.config.page import page
from bertjax.config.setting import Setting

PAGE = REPOSITORY / "docs" / "configuration.md"
FIELDS = {field.name: field for part in sections(FineTuningConfig()) for field in part.fields}
NUMBERS = [name for name, field in FIELDS.items() if field.kind in (int, float)]


def run(command, *arguments, columns=80):
    return subprocess.run(
        [sys.executable, "-m", f"bertjax.{command}", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={"COLUMNS": str(columns), "PYTHONPATH": ":".join(sys.path)},
    )


def with_value(name, value):
    """A fine-tuning configuration that is valid but for one field."""
    config = FineTuningConfig(phases=(Phase(100_000),))
    *parents, last = name.replace("[0]", "").split(".")
    node = config
    for parent in parents:
        node = node.phases[0] if parent == "phases" else getattr(node, parent)
    setattr(node, last, value)
    return config


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_says_what_it_is(name):
    field = FIELDS[name]
    said = field.setting
    assert re.fullmatch(r"[A-Z].*\.", said.meaning), "a phrase or sentences"
    assert bool(said.bounds) == (name in NUMBERS), "numbers have bounds, and nothing else has"
    assert not said.unit or name in NUMBERS
    if field.choices:
        assert {str(value).lower() for value in said.values} <= set(field.choices)
        assert isinstance(field.default, bool) or field.default in field.choices
    else:
        assert said.values.keys() <= {0, -1, 1, ""}
    assert name == "phases[0].num_steps" or said.accepts(field.default)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_beyond_its_bounds_is_refused_in_their_words(name):
    said, kind = FIELDS[name].setting, FIELDS[name].kind
    least = said.above if said.at_least is None else said.at_least - 1
    values = [value for value in (least, said.below, -7) if value is not None]
    refused = [kind(value) for value in values if value not in said.values]
    assert refused
    for value in refused:
        with pytest.raises(ConfigError) as error:
            validate(with_value(name, value))
        assert str(error.value) == f"config.{name} = {value}: expected {said.expected()}"


def test_bounds_and_values_in_words():
    rows = Setting(unit="rows", at_least=256, values={0: "all", 512: "two blocks"})
    assert rows.expected() == "a number of rows, at least 256, or 0 (all)"
    assert [rows.accepts(n) for n in (0, 1, 255, 256, 10**9)] == [True, False, False, True, True]
    share = Setting(above=0, below=1)
    assert share.expected() == "a number, above 0 and below 1"
    assert [share.accepts(n) for n in (0.0, 0.5, 1.0, float("nan"))] == [False, True, False, False]


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.choices])
def test_only_the_choices_of_a_field_are_accepted(name):
    if FIELDS[name].kind is bool:
        with pytest.raises(ConfigError, match=f"config.{name} = 'true' is of type str; .* bool"):
            validate(with_value(name, "true"))
        return
    with pytest.raises(ConfigError) as error:
        validate(with_value(name, "x"))
    listed = ", ".join(sorted(FIELDS[name].choices))
    names = FIELDS[name].setting.names
    advice = names.advice("x") if names else f"choose from {listed}"
    assert str(error.value) == f"config.{name} = 'x' is not known; {advice}"
    assert listed in advice
    with pytest.raises(ConfigError, match=f"config.{name} = 1 is of type int; expected str"):
        validate(with_value(name, 1))
    values = dataclasses.asdict(with_value(name, "x"))
    with pytest.raises(ConfigError, match=f"config.{name} = 'x' is not known"):
        FineTuningConfig.from_json(json.dumps(values))


def test_a_configuration_is_a_plain_dataclass():
    config = with_value("seed", 3)
    config.phases = (Phase(5, 128, 32),)
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    assert dataclasses.asdict(config)["phases"][0]["global_batch_size"] == 32
    assert dataclasses.replace(config, seed=4) != config
    assert Config().model is not Config().model
    assert FineTuningConfig().task.options is not FineTuningConfig().task.options


def test_configurations_of_197cb7a_mean_what_they_meant():
    """As that commit wrote them, `tiny` and one of fine-tuning."""
    text = (GOLDENS / "config_197cb7a.json").read_text()
    assert Config.from_json(text) == recipes.load_recipe("tiny")
    text = (GOLDENS / "fine_tuning_config_197cb7a.json").read_text()
    config = FineTuningConfig.from_json(text)
    read = json.loads(config.to_json())
    for name, value in json.loads(text).items():  # fields that came later have their defaults
        if isinstance(value, dict):
            value = read[name] | value
        elif name == "phases":
            value = [found | old for found, old in zip(read[name], value, strict=True)]
        assert read[name] == value, name
    assert (config.seed, config.init_from, config.data.stores) == (3, "hf:folder", "a:0.7,b:0.3")
    assert (config.model.gelu, config.model.head, config.model.remat) == (
        "erf",
        "classification",
        "layer",
    )
    assert config.phases == (Phase(100, 64, 16), Phase(20, packing_depth=1))
    assert (config.optimizer.name, config.optimizer.schedule) == ("lamb", "cosine")
    assert config.task.options == {"label_names": ["bad", "good"]}
    validate(config)


def test_a_renamed_field_is_read_under_its_old_name(monkeypatch):
    old = {"phases.steps": "num_steps", "optimizer.lr": "learning_rate", "state": "seed"}
    monkeypatch.setattr(schema, "RENAMED", old)
    text = '{"state": 3, "optimizer": {"lr": 1}, "phases": [{"num_steps": 5}, {"steps": 7}]}'
    config = Config.from_json(text)
    assert (config.seed, config.optimizer.learning_rate) == (3, 1.0)
    assert config.phases == (Phase(5), Phase(7))
    with pytest.raises(ConfigError, match=r"config.data.lr does not exist"):
        Config.from_json('{"data": {"lr": 1}}')


def test_the_names_of_renamed_fields_exist():
    known = {re.sub(r"\[\d+\]", "", name) for name in FIELDS}
    for old, new in schema.RENAMED.items():
        assert old not in known
        assert ".".join([*old.split(".")[:-1], new]) in known


def test_the_page_is_current():
    assert PAGE.read_text() == page(), "python -m bertjax.config.page > docs/configuration.md"
    for link in re.findall(r"\]\(([^)]+)\)", page()):
        assert (PAGE.parent / link).is_file(), link


@pytest.mark.parametrize(("columns", "width"), [(40, 60), (80, 80), (200, 100)])
def test_help_shows_every_field_within_the_terminal(columns, width):
    result = run("train", "--help_config", columns=columns)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= width
    found, section = {}, ""
    for line in lines:
        if heading := re.match(r"config(\.\S+)?: [A-Z]", line):
            section = (heading[1] or "").lstrip(".")
        elif entry := re.match(r"([* ]) (\w+)=(\S+)", line):
            found[f"{section}.{entry[2]}".lstrip(".")] = entry[1] == "*", entry[3]
    expected = {name for name in FIELDS if not name.startswith("task.")}
    assert found.keys() == expected
    assert all(found[name][0] == FIELDS[name].may_change for name in expected)
    assert found["model.gelu"][1] == "tanh|erf"
    if width == 60:
        assert found["model.head"][1] == "..."
        assert "One of pretraining, causal, encoder" in " ".join(result.stdout.split())
    assert found["data.max_length"][1] == "TOKENS"


def test_help_says_bounds_values_and_default_of_one_field():
    text = " ".join(run("plan", "--help_config=config.data.shuffle_window").stdout.split())
    assert text.endswith(
        "config.data: Where rows come from and how they are made. shuffle_window=ROWS Rows that "
        "are read and shuffled together (docs/design/stream.md). At least 256; 0 = all; -1 = all, "
        "or 2**18 for a store with more than 32 GiB of tokens. Default: -1."
    )


def test_help_of_fine_tuning_has_its_defaults_and_not_what_other_flags_decide():
    text = run("finetune", "--help_config").stdout
    assert "Default: adamw." in " ".join(text.split())
    assert "  num_threads=" not in text
    assert "* num_threads=" in text
    for name in ("seed", "learning_rate", "mask_rate", "head", "batch_size"):
        assert f" {name}=" not in text, name


def test_help_of_a_section_that_does_not_exist_names_the_closest():
    with pytest.raises(ConfigError, match=r"--help_config=optimiser: .* mean 'optimizer'\?"):
        config_help(Config(), lambda name: False, "optimiser", 80)
    result = run("train", "--help_config=optimiser")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("command", ["train", "finetune", "plan"])
def test_help_needs_no_jax(command):
    code = (
        f"import atexit, runpy, sys; sys.argv = ['x', '--help_config=mesh']; "
        "atexit.register(lambda: print('heavy:', *{'jax', 'numpy', 'tensorflow'} & {*sys.modules}))"
        f"; runpy.run_module('bertjax.{command}', run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    heavy = result.stdout.splitlines()[-1]
    assert "jax" not in heavy
    assert "tensorflow" not in heavy


def test_choices_are_given_on_the_command_line():
    arguments = ["--config.model.gelu=erf", "--config.optimizer.name", "lamb", "--print_config"]
    result = run("train", "--config=tiny", *arguments)
    assert result.returncode == 0, result.stderr
    config = Config.from_json(result.stdout)
    assert (config.model.gelu, config.optimizer.name) == ("erf", "lamb")
    result = run("train", "--config=tiny", "--config.model.gelu=erff")
    assert result.stderr == "error: config.model.gelu = 'erff' is not known; did you mean 'erf'?\n"


def test_fine_tuning_refuses_a_field_of_json_in_one_line():
    result = run("finetune", "--config.task.options={}")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "--config.task.options is decided by other flags" in result.stderr

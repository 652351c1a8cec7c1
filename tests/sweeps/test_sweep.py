"""`bertjax.sweep`: what it runs, compiles, writes and refuses, and that it goes on where it was."""

import collections
import json
import os
import shutil
import signal
import sys

import jax
import numpy as np
import pytest
from commands import run_here
from folders import GOLDENS
from matplotlib.figure import Figure
from micro_runs import read

import bertjax
from bertjax.checkpoints.checkpoint import resolve
from bertjax.config import ConfigError
from bertjax.parallel import distributed
from bertjax.reports.tracker import Tracker
from bertjax.storage.bucket import BucketPath
from bertjax.sweeps import sweep as sweeps
from bertjax.sweeps.models import find_models
from bertjax.sweeps.report import interval, summarize, table
from bertjax.sweeps.tasks import read_tasks
from bertjax.testing import make_workdir

HUGGING_FACE = GOLDENS / "hugging_face" / "encoder"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Tables of texts; those with the word w101 are labelled no."""
    folder = tmp_path_factory.mktemp("sweep")
    rng = np.random.default_rng(0)
    for name, count in (("train", 40), ("eval", 24)):
        words = rng.choice(["w101", "w102", "w103", "w105", "w106"], (count, 5))
        texts = [" ".join(row) for row in words]
        rows = [f"{text}\t{'no' if 'w101' in text else 'yes'}" for text in texts]
        (folder / f"{name}.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    return folder


def make_task(files, **settings):
    return {
        "task": "classification",
        "train": str(files / "train.tsv"),
        "eval": str(files / "eval.tsv"),
        "options": {"text_column": "text", "label_column": "label"},
        "batch_size": 8,
        "epochs": 1,
        "max_length": 16,
        "learning_rate": 1e-3,
        **settings,
    }


def run_sweep(tmp_path, tasks, models, /, *arguments, **flags):
    """The command in this process; the folder of the sweep is tmp_path/sweep."""
    path = tmp_path / "tasks.json"
    path.write_text(tasks if isinstance(tasks, str) else json.dumps(tasks))
    given = {"tasks": path, "workdir": tmp_path / "sweep", "config.log.tensorboard": "false"}
    given |= {"models": ",".join(map(str, models)), **flags}
    return run_here("sweep", *arguments, *(f"--{name}={value}" for name, value in given.items()))


def content_of(tmp_path):
    return json.loads((tmp_path / "sweep" / "sweep.json").read_text())


class Whole:
    """A sweep of two models, two tasks and two seeds, and what it compiled and drew."""

    def __init__(self, folder, whole_run, files):
        self.folder, self.compiled, figures = folder, collections.Counter(), []
        self.tasks = {
            "short": make_task(files),
            "long": make_task(files, epochs=2, learning_rate=3e-4),  # of the same shapes
        }
        self.models = [f"{whole_run}@12", f"{whole_run}@newest"]

        def listen(event, _, fun_name="", **__):
            if event == "/jax/core/compile/backend_compile_duration":
                self.compiled[fun_name] += 1

        save_figure = Figure.savefig

        def keep_and_save(figure, *arguments, **options):
            figures.append(figure)
            save_figure(figure, *arguments, **options)

        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Figure, "savefig", keep_and_save)
                self.result = self.run()
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)
        assert self.result.returncode == 0, self.result.stderr
        self.content, self.figure = content_of(folder), figures[-1]

    def run(self, *arguments, **flags):
        return run_sweep(self.folder, self.tasks, self.models, *arguments, seeds="0,1", **flags)


@pytest.fixture(scope="module")
def whole(whole_run, files, tmp_path_factory):
    return Whole(tmp_path_factory.mktemp("whole"), whole_run, files)


@pytest.mark.slow
def test_each_task_is_run_from_each_model_with_each_seed(whole, whole_run):
    content = whole.content
    assert (content["format"], content["finished"], len(content["runs"])) == (1, True, 8)
    combined = {(run["task"], run["step"], run["seed"]) for run in content["runs"]}
    assert combined == {
        (t, step, s) for t in ("short", "long") for step in (12, 18) for s in (0, 1)
    }
    lines = {line["step"]: line for line in read(whole_run)}
    for run in content["runs"]:
        folder = whole.folder / "sweep" / run["folder"]
        scores = json.loads((folder / "scores.json").read_text())
        assert (folder / "predictions.jsonl").exists()
        assert run["scores"] == scores["scores"]
        assert run["score"] == scores["scores"][run["main_metric"]]
        assert (run["seed"], run["model"]) == (scores["seed"], scores["init_from"])
        checkpoint = resolve(whole_run / "checkpoints" / f"step_{run['step']:08d}")
        assert run["model"] == str(checkpoint.path)
        assert run["seconds"] == checkpoint.progress["seconds"] > 0
        assert run["predicted_tokens"] == lines[run["step"]]["predicted_tokens"] > 0


@pytest.mark.slow
def test_means_and_intervals_are_over_the_seeds(whole):
    assert len(whole.content["models"]) == len(whole.content["points"]) == 4
    for model in whole.content["models"]:
        runs = [
            run
            for run in whole.content["runs"]
            if (run["task"], run["model"]) == (model["task"], model["model"])
        ]
        values = [run["score"] for run in runs]
        assert (model["n"], model["over"], model["values"]) == (2, "seeds", values)
        assert model["mean"] == pytest.approx(np.mean(values))
        assert model["deviation"] == pytest.approx(np.std(values, ddof=1))
        # 12.706, the quantile of any table, times the deviation divided by the root of two
        half = 12.7062 * np.std(values, ddof=1) / 2**0.5
        assert model["interval"] == pytest.approx([np.mean(values) - half, np.mean(values) + half])
        assert f"{model['mean']:.4f} ± {model['deviation']:.4f}" in whole.result.stdout
    assert table(whole.content) in whole.result.stdout


@pytest.mark.slow
def test_a_step_is_compiled_once_for_all_models_seeds_rates_and_numbers_of_steps(whole):
    steps = {run["task"]: run["fine_tuning_steps"] for run in whole.content["runs"]}
    assert steps["long"] == 2 * steps["short"]
    assert whole.compiled["jit(_tabled_train_step)"] == 1
    assert whole.compiled["jit(draw)"] == 1


@pytest.mark.slow
def test_the_plot_has_the_scores_over_steps_tokens_and_seconds(whole):
    assert (whole.folder / "sweep" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert len(whole.figure.axes) == 6
    points = [p for p in whole.content["points"] if p["task"] == "short"]
    for axes, name in zip(whole.figure.axes, ("step", "predicted_tokens", "seconds"), strict=False):
        line = axes.get_lines()[0]
        assert line.get_xdata() == pytest.approx([p[name] for p in points])
        assert line.get_ydata() == pytest.approx([p["mean"] for p in points])
        (bars,) = axes.collections
        ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
        assert np.allclose(ends, [p["interval"] for p in points])


@pytest.mark.slow
def test_a_finished_sweep_is_left_as_it_is(whole, monkeypatch):
    monkeypatch.setattr(sweeps, "train_and_score", None)
    before = (whole.folder / "sweep" / "sweep.json").read_bytes()
    again = whole.run()
    assert (again.returncode, again.stdout) == (0, whole.result.stdout)
    assert "8 of 8 runs are finished already" in again.stderr
    assert (whole.folder / "sweep" / "sweep.json").read_bytes() == before


@pytest.mark.slow
def test_other_settings_in_the_same_folder_are_refused_before_any_work(whole, monkeypatch):
    monkeypatch.setattr(sweeps, "train_and_score", None)
    monkeypatch.setitem(whole.tasks, "long", whole.tasks["long"] | {"learning_rate": 1e-4})
    result = whole.run()
    assert result.returncode == 2
    assert "config.optimizer.learning_rate: 0.0003 there, 0.0001 here" in result.stderr
    assert result.stderr.splitlines()[-1].startswith(f"error: {whole.folder}/sweep/long/")


@pytest.mark.slow
def test_checkpoints_of_finished_runs_may_go_and_the_runs_stay_finished(whole, tmp_path):
    shutil.copytree(whole.folder, tmp_path, dirs_exist_ok=True)
    moved = {"workdir": tmp_path / "sweep"}
    assert list((tmp_path / "sweep").rglob("step_*/seed_*/checkpoints"))
    assert whole.run("--nokeep_checkpoints", **moved).returncode == 0
    assert not list((tmp_path / "sweep").rglob("step_*/seed_*/checkpoints"))
    assert "8 of 8 runs are finished already" in whole.run(**moved).stderr
    assert content_of(tmp_path) == whole.content
    (scores,) = (tmp_path / "sweep" / "short").glob("*/step_00000012/seed_0/scores.json")
    scores.unlink()
    assert "7 of 8 runs are finished already" in whole.run(**moved).stderr
    assert [run["score"] for run in content_of(tmp_path)["runs"]] == [
        run["score"] for run in whole.content["runs"]
    ]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["in a run", "between runs"])
def test_a_sweep_that_is_stopped_goes_on_where_it_was(
    whole_run, files, tmp_path, monkeypatch, where
):
    tasks, models = {"short": make_task(files)}, [f"{whole_run}@12"]
    trained = []
    train, log = sweeps.train_and_score, Tracker.log_step

    def train_and_stop(config, folder, *arguments):
        trained.append(folder.name)
        if where == "between runs" and trained == ["seed_0", "seed_1"]:
            os.kill(os.getpid(), signal.SIGTERM)
        return train(config, folder, *arguments)

    def log_and_stop(tracker, record, seconds_left=None):
        log(tracker, record, seconds_left)
        if where == "in a run" and trained == ["seed_0", "seed_1"] and record["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(sweeps, "train_and_score", train_and_stop)
    monkeypatch.setattr(Tracker, "log_step", log_and_stop)
    monkeypatch.setattr(distributed, "end", sys.exit)  # which ends this process at once
    flags = {"seeds": "0,1", "config.log.every_steps": 1}
    stopped = run_sweep(tmp_path, tasks, models, **flags)
    assert (stopped.returncode, stopped.stdout) == (75, ""), stopped.stderr
    content = content_of(tmp_path)
    assert [run["status"] for run in content["runs"]] == ["finished", "waiting"]
    assert not content["finished"]
    result = run_sweep(tmp_path, tasks, models, **flags)
    assert result.returncode == 0, result.stderr
    assert trained == ["seed_0", "seed_1", "seed_1"]
    assert ("resuming from step" in result.stderr) == (where == "in a run")
    assert content_of(tmp_path)["finished"]


def test_a_run_that_diverges_leaves_the_others_and_is_named(whole_run, files, tmp_path):
    tasks = {"wild": make_task(files, learning_rate=1e30), "tame": make_task(files)}
    result = run_sweep(tmp_path, tasks, [f"{whole_run}@12"])
    assert result.returncode == 1
    wild, tame = content_of(tmp_path)["runs"]
    assert (wild["status"], wild["score"], tame["status"]) == ("diverged", None, "finished")
    assert "loss nan" in wild["reason"]
    assert result.stderr.splitlines()[-1].startswith(f"error: {wild['folder']}: step ")
    assert [model["task"] for model in content_of(tmp_path)["models"]] == ["tame"]
    assert "tame" in result.stdout
    assert "wild" not in result.stdout


@pytest.mark.slow
def test_models_without_a_known_pre_training_have_no_steps(files, tmp_path):
    """From Python; a Hugging Face folder and a converted model."""
    make_workdir(tmp_path / "converted")
    models = [f"published=hf:{HUGGING_FACE}", tmp_path / "converted"]
    task = make_task(files, max_length=8)
    result = bertjax.fine_tune_sweep(
        models, {"short": task}, tmp_path / "sweep", overrides={"log.tensorboard": False}
    )
    first, second = result.content["models"]
    for model, group in ((first, "published"), (second, "converted")):
        assert (model["group"], model["n"], model["interval"]) == (group, 1, None)
        assert model["step"] is model["predicted_tokens"] is model["seconds"] is None
    assert result.table.count("?") == 6
    assert (tmp_path / "sweep" / "sweep.png").exists()
    assert not result.preempted


# What is refused


@pytest.mark.parametrize(
    ("changes", "flags", "message"),
    [
        ({}, {"models": ""}, "--models is missing"),
        ({}, {"models": "no/such"}, "--models=no/such: "),
        ({}, {"models": "{run}@13"}, "has no checkpoint of step 13; it has kept 12, 16, 18"),
        ({}, {"models": HUGGING_FACE}, f"is given as --models=hf:{HUGGING_FACE}"),
        ({}, {"seeds": "0,0"}, "error: --seeds=0,0: expected different positive numbers"),
        ({}, {"seeds": "x"}, "error: --seeds=x: expected different"),
        ({}, {"tasks": "no/such.json"}, "--tasks=no/such.json: no such file"),
        ({}, {"config.optimizer.learning_rate": 1}, "is decided by other flags or the task"),
        ({"epoch": 3}, {}, "second.epoch: no such setting; did you mean 'epochs'?"),
        ({"batch_size": 8.5}, {}, "second.batch_size = 8.5: expected a whole number"),
        ({"batch_size": True}, {}, "second.batch_size = True: expected a whole number"),
        ({"batch_size": 0}, {}, "task second: --batch_size=0: expected different positive"),
        ({"learning_rate": "1e-3"}, {}, "second.learning_rate = '1e-3': expected a number"),
        ({"train": ""}, {}, "second.train is missing"),
        ({"eval": "no/such.tsv"}, {}, "task second: no/such.tsv"),
        ({"task": "clasification"}, {}, "did you mean 'classification'?"),
        ({"options": {"text_column": "txt"}}, {}, "task second: "),
        ({"max_length": 65}, {}, "task second, model {run}/checkpoints/step_00000012: --max_leng"),
        ({"warmup_share": 2}, {}, "task second: --warmup_share=2"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_before_any_work(
    whole_run, files, tmp_path, changes, flags, message
):
    tasks = {"first": make_task(files), "second": make_task(files, **changes)}
    flags = {name: str(value).format(run=whole_run) for name, value in flags.items()}
    models = [f"{whole_run}@12"]
    result = run_sweep(tmp_path, tasks, models, **flags)
    assert result.returncode == 2, result.stderr
    assert message.format(run=whole_run) in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": ', "cannot be read as JSON"),
        ("[]", "expected an object of tasks"),
        ("{}", "expected an object of tasks"),
        ('{"a": 1}', "a: expected an object of settings"),
        ('{"a/b": {}}', "a/b: a name is of letters"),
        ('{"a": {"train": "x", "train": "y"}}', "'train' is there twice"),
    ],
)
def test_a_file_of_tasks_that_is_none_is_refused(tmp_path, text, message):
    (tmp_path / "tasks.json").write_text(text)
    with pytest.raises(ConfigError, match=f"^--tasks={tmp_path}/tasks.json.*{message}"):
        read_tasks(tmp_path / "tasks.json")


def test_the_name_is_the_task_where_none_is_given():
    (task,) = read_tasks({"cola": {"train": "a", "eval": "b"}})
    assert (task.task, task.learning_rate, task.batch_size, task.epochs) == ("cola", 3e-5, 32, None)


# Which models


def test_a_workdir_is_each_of_its_checkpoints_once(whole_run, monkeypatch):
    monkeypatch.chdir(whole_run.parent)
    found = find_models(["whole", "whole@16", whole_run / "checkpoints" / "step_00000018"])
    assert [model.step for model in found] == [12, 16, 18]
    assert {(model.group, model.folder) for model in found} == {("whole", "whole")}
    (newest,) = find_models(["whole@newest"])
    assert newest == found[-1]


def test_a_checkpoint_has_one_name(whole_run):
    with pytest.raises(
        ConfigError, match=r"step_00000018 has two names, 'a' and 'b': name it once"
    ):
        find_models([f"a={whole_run}@18", f"b={whole_run}"])
    assert len(find_models([f"a={whole_run}@18", f"a={whole_run}@newest"])) == 1


def test_workdirs_of_one_name_are_one_group_and_have_folders_of_their_own(
    whole_run, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("a/run", "b/run", "c/run"):
        shutil.copytree(whole_run, tmp_path / name)
    found = find_models(["masked=a/run@12", "masked=b/run@12", "c/run@12"])
    assert [model.group for model in found] == ["masked", "masked", "run"]
    assert [model.folder for model in found] == ["a_run", "b_run", "c_run"]
    groups = [model.group for model in find_models(["a/run@12", "b/run@12"])]
    assert groups == ["a/run", "b/run"]  # the last folder alone would not tell them apart


def test_two_runs_may_not_share_a_folder(whole_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/b", "a_b"):
        shutil.copytree(whole_run, tmp_path / name)
    with pytest.raises(ConfigError, match="a/b and a_b would both have the folder a_b"):
        find_models(["a/b", "a_b"])


@pytest.mark.slow
def test_checkpoints_in_a_bucket_are_found(whole_run, bucket: BucketPath):
    for path in whole_run.rglob("*"):
        if path.is_file():
            (bucket / "runs" / "a" / str(path.relative_to(whole_run))).upload(path)
    found = find_models([f"{bucket}/runs/a"])
    assert [model.step for model in found] == [12, 16, 18]
    assert [model.predicted_tokens for model in found] == [
        model.predicted_tokens for model in find_models([whole_run])
    ]
    assert found[0].init_from == f"{bucket}/runs/a/checkpoints/step_00000012"
    assert found[0].group == "a"


# Statistics


def record(run, seed, score, step=100):
    progress = {"step": step, "predicted_tokens": 50 * step, "seconds": len(run) * step}
    return {
        "task": "cola",
        "group": "masked",
        "run": run,
        "model": f"{run}/{step}",
        "seed": seed,
        "main_metric": "matthews",
        "score": score,
        **progress,
    }


def test_a_point_of_several_pre_trainings_is_over_their_means():
    """Seeds of fine-tuning that share a pre-training are not independent."""
    scores = [("a", 0, 0.1), ("a", 1, 0.3), ("bbb", 0, 0.5), ("bbb", 1, 0.7), ("bbb", 2, None)]
    summary = summarize([record(*score) for score in scores])
    assert [model["values"] for model in summary["models"]] == [[0.1, 0.3], [0.5, 0.7]]
    (point,) = summary["points"]
    assert (point["over"], point["n"], point["seconds"]) == ("runs", 2, 200)
    assert point["values"] == pytest.approx([0.2, 0.6])
    assert point["mean"] == pytest.approx(0.4)


def test_an_interval_is_students():
    """4.303 is the 0.975 quantile for two degrees of freedom, in any table."""
    found = interval([1.0, 2.0, 3.0])
    assert (found["n"], found["mean"], found["deviation"]) == (3, 2.0, 1.0)
    assert found["interval"] == pytest.approx([2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5], rel=1e-4)
    alone = interval([1.0])
    assert (alone["mean"], alone["deviation"], alone["interval"]) == (1.0, None, None)

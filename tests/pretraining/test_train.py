"""Runs through the public command and `pretrain`: what is written, and that resuming is exact."""

import collections
import contextlib
import dataclasses
import itertools
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from folders import RECIPE
from micro_runs import DIRECTIONS, STEPS, assert_same_run, computed, micro, read, summary

from bertjax.checkpoints.checkpoint import CheckpointStore, resolve
from bertjax.config import ConfigError, ModelConfig, Phase
from bertjax.data.store.store_writer import write_store
from bertjax.objectives.objective import make_objective
from bertjax.pretraining import job as pretraining_job
from bertjax.pretraining.run import pretrain
from bertjax.pretraining.stores import open_data
from bertjax.reports.tracker import Tracker, step_keys
from bertjax.storage.workdir_lock import WorkdirInUseError
from bertjax.testing import make_documents, make_tokenizer
from bertjax.training import loop
from bertjax.training.compilation import DoesNotFitError
from bertjax.training.preemption import Preempted, PreemptionGuard, wait_until_ready
from bertjax.training.workdir import open_workdir


def test_a_run_leaves_what_it_promises(whole_run):
    lines = read(whole_run)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["phase"] for line in lines] == [0] * 12 + [1] * 6
    assert [line["position"] for line in lines] == [8 * i for i in range(1, 13)] + [
        4 * i for i in range(1, 7)
    ]
    for line in lines:
        assert list(line) == list(step_keys(make_objective(ModelConfig()).reported))
        assert line["loss"] == pytest.approx(line["mlm_loss"] + line["nsp_loss"], rel=1e-5)
        assert line["mfu"] is None  # nobody publishes the peak of a CPU
    assert lines[0]["learning_rate"] == 0
    assert lines[3]["learning_rate"] == pytest.approx(0.75e-2)
    assert len({line["rows_sha256"] for line in lines}) == STEPS
    assert lines[-1]["sequences_per_second"] > 0
    assert (whole_run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((whole_run / "tensorboard" / "train").iterdir())
    kept = sorted(p.name for p in (whole_run / "checkpoints").glob("step_*"))
    assert kept == ["step_00000012", "step_00000016", "step_00000018"]  # keep = 3


def test_the_summary_says_how_good_and_beside_what(whole_run):
    result = summary(whole_run)
    last = read(whole_run, "evals.jsonl")[-1]
    assert result["steps"] == last["step"] == STEPS
    assert result["parameters"] == 1_000 * 16 + 66 * 16 + 32 + 2 * 2_224 + 272 + 1_304 + 34
    for name in (
        "heldout_mlm_loss",
        "heldout_mlm_accuracy",
        "heldout_nsp_accuracy",
        "heldout_nsp_majority",
        "heldout_unigram_entropy",
    ):
        assert result[name] == last[name]
    assert 0.5 <= result["heldout_nsp_majority"] < 0.8  # of 24 rows
    # The made-up ids are uniform over 995 pieces: nobody does better than that, and a model that
    # has learned their frequencies not much worse.
    assert 6.8 < result["heldout_unigram_entropy"] < 7.0
    assert 6.8 < result["heldout_mlm_loss"] < 7.2


@pytest.mark.slow
def test_a_left_to_right_run_reads_the_rows_of_a_masked_one(store, whole_runs, tmp_path):
    masked = {"model__next_sentence": False, "model__pooler": False}
    assert pretrain(micro(store, num_steps=4, **masked), tmp_path).exit_code == 0
    workdir = whole_runs("left_to_right")
    for line, other in zip(read(tmp_path), read(workdir), strict=False):
        assert line["rows_sha256"] == other["rows_sha256"]
        assert line["real_token_share"] == other["real_token_share"]
    result = summary(workdir)
    # As of the masked run: nobody does better than the frequencies.
    assert 6.8 < result["heldout_unigram_entropy"] < 7.0
    assert 6.8 < result["heldout_lm_loss"] < 7.2
    assert "mlm_loss" not in read(workdir)[0]


@pytest.mark.slow
def test_a_run_may_begin_left_to_right_and_go_on_masked(store, whole_runs, tmp_path, caplog):
    """The layers of both heads are the same, so nothing is drawn anew."""
    workdir = whole_runs("left_to_right")
    changes = {"model__next_sentence": False, "model__pooler": False, "init_from": str(workdir)}
    with caplog.at_level(logging.INFO, logger="bertjax"):
        assert pretrain(micro(store, num_steps=1, **changes), tmp_path).exit_code == 0
    assert "it was trained left_to_right, and is trained bidirectional from now on" in caplog.text
    assert "initialized from seed" not in caplog.text
    # At step 0 the rate is 0: these are the parameters that it began with.
    assert summary(tmp_path)["params_sha256"] == summary(workdir)["params_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "direction"),
    [(3, "bidirectional"), (8, "bidirectional"), (14, "bidirectional"), (14, "left_to_right")],
)
def test_stopped_and_continued_is_the_same_run(store, whole_runs, tmp_path, stop, direction):
    whole, changes = whole_runs(direction), DIRECTIONS[direction]
    assert pretrain(micro(store, num_steps=stop, **changes), tmp_path).exit_code == 0
    assert summary(tmp_path)["steps"] == stop
    assert pretrain(micro(store, **changes), tmp_path).exit_code == 0
    assert summary(tmp_path)["params_sha256"] == summary(whole)["params_sha256"]
    assert computed(tmp_path) == computed(whole)


@pytest.mark.slow
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    "options",
    [
        {"model__attention": "pallas", "model__dtype": "bfloat16", "data__packing_depth": 3}
        | {"model__lookup_gradient": "sorted"}
        | {"model__layer_norm": "pallas", "model__hidden_size": 64},
        {"model__scan_layers": True, "model__remat": "attention", "num_microbatches": 2},
    ],
)
def test_with_fast_options_stopped_and_continued_is_the_same_run(
    store, tmp_path, options, direction
):
    options = options | DIRECTIONS[direction]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert pretrain(micro(store, **options), whole).exit_code == 0
    assert pretrain(micro(store, num_steps=7, **options), stopped).exit_code == 0
    assert pretrain(micro(store, **options), stopped).exit_code == 0
    assert summary(stopped)["params_sha256"] == summary(whole)["params_sha256"]
    assert computed(stopped) == computed(whole)


@pytest.mark.slow
def test_compiled_as_users_have_it_stopped_and_continued_is_the_same_run(store, tmp_path):
    """Other tests compile with fewer optimisations."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}

    def run(workdir, num_steps):
        command = [sys.executable, "-m", "bertjax.train", f"--config={RECIPE}"]
        command += [f"--workdir={workdir}", f"--config.data.store={store}"]
        command += [f"--config.num_steps={num_steps}"]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)

    run(tmp_path / "whole", 6)
    run(tmp_path / "stopped", 3)
    run(tmp_path / "stopped", 6)
    whole, stopped = summary(tmp_path / "whole"), summary(tmp_path / "stopped")
    assert stopped["params_sha256"] == whole["params_sha256"]
    assert computed(tmp_path / "stopped") == computed(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_microbatches_and_scan_change_nothing_but_rounding(store, whole_runs, tmp_path, direction):
    changes = {"num_microbatches": 4, "model__scan_layers": True, **DIRECTIONS[direction]}
    assert pretrain(micro(store, **changes), tmp_path).exit_code == 0
    for line, whole in zip(read(tmp_path), read(whole_runs(direction)), strict=True):
        assert line["rows_sha256"] == whole["rows_sha256"]
        assert line["loss"] == pytest.approx(whole["loss"], abs=2e-4)  # 18 steps at a rate of 1e-2


@pytest.mark.slow
def test_a_resumed_run_keeps_its_microbatches_though_fewer_would_do(store, tmp_path, monkeypatch):
    """Other parts are added up with other rounding."""
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    with monkeypatch.context() as little:
        little.setattr(loop, "device_memory_bytes", lambda mesh: 2_242_248)
        assert pretrain(micro(store, num_steps=3), stopped).exit_code == 0
    assert pretrain(micro(store, num_steps=8), stopped).exit_code == 0
    parts = [
        json.loads((stopped / "checkpoints" / name / "progress.json").read_text())
        for name in ("step_00000003", "step_00000008")
    ]
    chosen = parts[0]["num_microbatches"]
    assert parts[1]["num_microbatches"] == chosen > 1
    assert pretrain(micro(store, num_steps=8, num_microbatches=chosen), whole).exit_code == 0
    assert summary(stopped)["params_sha256"] == summary(whole)["params_sha256"]
    # A setting that needs less memory: what fits now is found anew.
    assert pretrain(micro(store, num_steps=9, model__remat="layer"), stopped).exit_code == 0
    progress = json.loads((stopped / "checkpoints" / "step_00000009" / "progress.json").read_text())
    assert progress["num_microbatches"] == 1


@pytest.mark.slow
def test_a_later_phase_that_does_not_fit_is_refused_at_the_start(store, tmp_path, monkeypatch):
    """Not after the days that the phases before it take."""
    monkeypatch.setattr(loop, "device_memory_bytes", lambda mesh: 522_248)
    with pytest.raises(DoesNotFitError, match=r"rows of 64 tokens, 1 per device and microbatch"):
        pretrain(micro(store), tmp_path)
    assert not (tmp_path / "metrics.jsonl").read_text()
    assert pretrain(micro(store, num_steps=2), tmp_path).exit_code == 0


@pytest.mark.slow
def test_with_less_memory_a_resumed_run_says_that_it_takes_more_microbatches(
    store, tmp_path, monkeypatch, caplog
):
    assert pretrain(micro(store, num_steps=3), tmp_path).exit_code == 0
    monkeypatch.setattr(loop, "device_memory_bytes", lambda mesh: 2_242_248)
    assert pretrain(micro(store, num_steps=5), tmp_path).exit_code == 0
    assert "1 before the restart: the rounding will differ" in caplog.text


@pytest.mark.slow
def test_sigterm_saves_and_exits_75(store, whole_run, tmp_path, monkeypatch):
    config = micro(store)
    log_step = Tracker.log_step

    def log_and_preempt(tracker, record, *arguments):
        log_step(tracker, record, *arguments)
        if record["step"] == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(Tracker, "log_step", log_and_preempt)
        assert pretrain(config, tmp_path).preempted
    saved = max((tmp_path / "checkpoints").glob("step_*"))
    assert read(tmp_path)[-1]["step"] == int(saved.name.split("_")[1]) < STEPS
    assert not (tmp_path / "summary.json").exists()
    assert pretrain(config, tmp_path).exit_code == 0
    assert_same_run(tmp_path, whole_run)


@pytest.mark.slow
def test_a_slow_step_is_the_last_one_that_a_signal_waits_for(
    store, whole_run, tmp_path, monkeypatch
):
    """Where the host does not run ahead, no other step is begun before the signal is heard."""
    waited = []

    def wait_and_preempt(loss):
        waited.append(loss)
        if len(waited) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        wait_until_ready(loss)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "_SLOW_STEP_SECONDS", 0.0)
        patched.setattr(loop, "wait_until_ready", wait_and_preempt)
        assert pretrain(micro(store), tmp_path).preempted
    assert [path.name for path in (tmp_path / "checkpoints").glob("step_*")] == ["step_00000003"]
    assert pretrain(micro(store), tmp_path).exit_code == 0
    assert_same_run(tmp_path, whole_run)


@pytest.mark.slow
def test_what_is_summed_for_a_line_does_not_wait_for_the_next_step(store, tmp_path, monkeypatch):
    """Else every line would cost the devices a step's time."""
    report, seen = loop._Trainer._report, []

    def look_and_report(trainer, tracker, index, step, last):
        if last is not None:
            jax.block_until_ready(last[1]["loss"])
            steps = trainer.since_logged.totals()["steps"]
            seen.append((step, steps))
        report(trainer, tracker, index, step, last)

    monkeypatch.setattr(loop._Trainer, "_report", look_and_report)
    assert pretrain(micro(store, num_steps=5, log__every_steps=3), tmp_path).exit_code == 0
    assert seen == [(1, 1), (2, 2), (3, 3), (4, 1), (5, 2)]


@pytest.mark.slow
def test_lines_are_means_of_the_steps_since_the_line_before(store, whole_run, tmp_path):
    assert pretrain(micro(store, log__every_steps=5), tmp_path).exit_code == 0
    steps, lines = read(whole_run), read(tmp_path)
    assert [line["step"] for line in lines] == [5, 10, 15, 18]
    for line, before in zip(lines, [0, 5, 10, 15], strict=True):
        here, last = steps[before : line["step"]], steps[line["step"] - 1]
        for name in ("rows_sha256", "learning_rate", "position", "phase"):
            assert line[name] == last[name]
        norms = [step["grad_norm"] for step in here]
        assert line["grad_norm"] == pytest.approx(sum(norms) / len(norms), rel=1e-6)
        assert line["loss"] == pytest.approx(line["mlm_loss"] + line["nsp_loss"], rel=1e-5)
        # Phases have 8 rows of 32 tokens, then 4 of 64: as many places, but not as many pairs.
        share = sum(step["real_token_share"] for step in here) / len(here)
        assert line["real_token_share"] == pytest.approx(share, rel=1e-6)
        rows = [4 if step["phase"] else 8 for step in here]
        right = sum(step["nsp_accuracy"] * n for step, n in zip(here, rows, strict=True))
        assert line["nsp_accuracy"] == pytest.approx(right / sum(rows), rel=1e-6)
    assert summary(tmp_path)["params_sha256"] == summary(whole_run)["params_sha256"]


def test_a_run_counts_the_tokens_that_it_predicts(store, whole_run, tmp_path):
    config = micro(store)
    data = open_data(config, open_workdir(tmp_path))
    masked = [
        data.training_rows(config, phase).rows(np.arange(num_rows))["masked_weights"]
        for phase, num_rows in enumerate((12 * 8, 6 * 4))
    ]
    steps = [*masked[0].reshape(12, -1).sum(axis=1), *masked[1].reshape(6, -1).sum(axis=1)]
    counted = [line["predicted_tokens"] for line in read(whole_run)]
    assert counted == np.cumsum(steps).tolist()
    assert resolve(whole_run).progress["predicted_tokens"] == counted[-1]


@pytest.mark.slow
def test_a_line_after_a_restart_is_that_of_the_run_without(store, tmp_path):
    options = {"log__every_steps": 5, "checkpoint__keep": 0}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert pretrain(micro(store, **options), whole).exit_code == 0
    shutil.copytree(whole, stopped)
    for path in (stopped / "checkpoints").glob("step_*"):
        if int(path.name[5:]) > 8:  # between the lines of steps 5 and 10
            shutil.rmtree(path)
    assert pretrain(micro(store, **options), stopped).exit_code == 0
    assert computed(stopped) == computed(whole)


def test_a_signal_is_noted_even_where_its_exception_gets_lost():
    with PreemptionGuard() as guard:
        with contextlib.suppress(Preempted):
            os.kill(os.getpid(), signal.SIGTERM)
        assert guard.requested


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, "KeyboardInterrupt")]
)
def test_a_second_signal_ends_at_once_and_the_first_says_so(number, code):
    """Also where the program waits for a device that never gets done."""
    program = f"""
import os, threading, time
from bertjax.training.preemption import PreemptionGuard, wait_until_ready

class Never:
    def is_ready(self):
        return False

def signals():
    for _ in range(2):
        time.sleep(0.5)
        os.kill(os.getpid(), {int(number)})

with PreemptionGuard(deferred=True):
    threading.Thread(target=signals, daemon=True).start()
    wait_until_ready(Never())
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100
    )
    assert "a second signal ends at once, without saving" in result.stderr
    if code == 143:
        assert result.returncode == 143
        assert "SIGTERM again: ending at once, without saving" in result.stderr
    else:
        assert result.stderr.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.slow
def test_sigterm_while_compiling_exits_75_at_once(store, tmp_path):
    """With nothing compiled before, the compiler is still at work when the process ends."""
    with subprocess.Popen(
        command(store, tmp_path / "run"),
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")},
    ) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "phase 0: at least" in line:
                process.send_signal(signal.SIGTERM)
    assert process.returncode == 75, lines
    assert "before the first step: there was nothing to save" in lines[-1]
    assert not any("compiled the step" in line for line in lines)


@pytest.mark.slow
def test_minutes_that_are_asked_about_a_step_late_save_once(store, tmp_path, monkeypatch):
    """As several processes ask: a vote that was cast before a save must not make another."""
    answers = collections.deque([(False, False)])

    def soon(self, *asked):
        answers.append(asked)
        return answers.popleft()

    monkeypatch.setattr(loop.distributed.Agreement, "soon", soon)
    options = {"every_steps": 1_000, "every_minutes": 1e-9, "keep": 0}
    changes = {f"checkpoint__{name}": value for name, value in options.items()}
    assert pretrain(micro(store, num_steps=9, **changes), tmp_path).exit_code == 0
    saved = sorted(int(path.name[5:]) for path in (tmp_path / "checkpoints").glob("step_*"))
    assert len(saved) > 3
    assert all(after - before > 1 for before, after in itertools.pairwise(saved[:-1])), saved


def command(store, workdir, *more):
    return [
        sys.executable,
        "-m",
        "bertjax.train",
        f"--config={RECIPE}",
        f"--workdir={workdir}",
        f"--config.data.store={store}",
        *more,
    ]


@pytest.mark.slow
def test_without_a_workdir_the_run_is_kept_by_the_name_of_its_recipe(store, tmp_path):
    for steps, said in ((1, "starting at step 0"), (2, "resuming from step 1")):
        result = subprocess.run(
            [
                *(sys.executable, "-m", "bertjax.train", f"--config={RECIPE}"),
                *(f"--config.data.store={store}", f"--config.num_steps={steps}"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr
        assert "the run is kept in runs/micro; --workdir=DIR" in result.stderr.splitlines()[0]
        assert said in result.stderr
    assert summary(tmp_path / "runs" / "micro")["steps"] == 2


@pytest.mark.slow
def test_many_epochs_of_the_embedded_corpus_are_said_with_what_to_do(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(pretraining_job, "_MANY_EPOCHS", 0.0)
    caplog.set_level(logging.INFO, logger="bertjax")
    changes = {"model__vocab_size": 2_048, "phases": (Phase(num_steps=100_000),)}
    assert pretrain(micro("", num_steps=2, **changes), tmp_path).exit_code == 0
    rows = int(re.search(r"([\d,]+) rows per epoch", caplog.text)[1].replace(",", ""))
    assert "goes over it 0 times in this phase, which takes 0:00:00 here" in caplog.text
    assert f"{2 * 8 / rows:.2f} epochs in this phase" in caplog.text
    assert "python -m bertjax.prepare --input='corpus/*.txt' --output=stores/mine" in caplog.text
    assert "--vocab_size=2048, then --config.data.store=stores/mine" in caplog.text


def test_killed_and_restarted_is_the_same_run(store, whole_run, tmp_path):
    process = subprocess.Popen(command(store, tmp_path), stderr=subprocess.DEVNULL)
    while not list((tmp_path / "checkpoints").glob("step_*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    result = subprocess.run(command(store, tmp_path), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "resuming from step" in result.stderr
    assert result.stderr.count("first step done ") == 1
    assert "finished 18 steps" in result.stderr
    assert_same_run(tmp_path, whole_run)


def test_a_finished_run_is_left_as_it_is(store, whole_run, tmp_path):
    shutil.copytree(whole_run, tmp_path / "copy")
    assert pretrain(micro(store), tmp_path / "copy").exit_code == 0
    assert_same_run(tmp_path / "copy", whole_run)


@pytest.mark.slow
def test_parameters_of_another_run_are_a_start(store, whole_run, tmp_path):
    assert pretrain(micro(store, init_from=str(whole_run), num_steps=1), tmp_path).exit_code == 0
    # The rate of the first step is 0, so it leaves the parameters as they were.
    assert summary(tmp_path)["params_sha256"] == summary(whole_run)["params_sha256"]
    assert read(tmp_path)[0]["loss"] < 8.5


BASELINES = ("heldout_unigram_entropy", "heldout_nsp_majority")


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"data__mask_rate": 0.4},
        {"data__masking": "span", "data__max_predictions": 12},
        {"data__packing_depth": 3},
        {"data__short_row_rate": 0.0},
    ],
)
def test_held_out_rows_do_not_follow_the_training_rows(store, whole_run, tmp_path, changes):
    """The baselines are functions of the masked tokens and of the pairs alone."""
    assert pretrain(micro(store, num_steps=1, **changes), tmp_path).exit_code == 0
    whole = read(whole_run, "evals.jsonl")[0]
    assert [summary(tmp_path)[name] for name in BASELINES] == [whole[name] for name in BASELINES]


@pytest.mark.slow
def test_what_is_evaluated_on_changes_no_parameter(store, whole_run, tmp_path):
    evaluation = {"mask_rate": 0.4, "masking": "span", "short_row_rate": 0.5, "max_length": 64}
    changes = {f"eval__{name}": value for name, value in evaluation.items()}
    assert pretrain(micro(store, **changes), tmp_path).exit_code == 0
    assert summary(tmp_path)["params_sha256"] == summary(whole_run)["params_sha256"]
    assert computed(tmp_path) == computed(whole_run)
    lines, whole = read(tmp_path, "evals.jsonl"), read(whole_run, "evals.jsonl")
    # Rows of 64 tokens in both phases, the second of which has them anyway.
    assert len({line["heldout_unigram_entropy"] for line in lines}) == 1
    assert len({line["heldout_unigram_entropy"] for line in whole}) == 2
    assert lines[0]["heldout_unigram_entropy"] != whole[-1]["heldout_unigram_entropy"]


@pytest.mark.slow
def test_a_resumed_run_says_that_it_evaluates_on_other_rows(store, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="bertjax")
    assert pretrain(micro(store, num_steps=1, data__mask_rate=0.4), tmp_path).exit_code == 0
    assert pretrain(micro(store, num_steps=2, data__mask_rate=0.4), tmp_path).exit_code == 0
    assert "do not compare" not in caplog.text
    changes = {"data__mask_rate": 0.4, "eval__mask_rate": 0.4}
    assert pretrain(micro(store, num_steps=3, **changes), tmp_path).exit_code == 0
    assert "config.eval.mask_rate changed since the checkpoint: 0.15, now 0.4" in caplog.text
    assert "the held-out losses from here on do not compare with those before" in caplog.text


@pytest.mark.slow
def test_a_run_of_a_version_whose_held_out_rows_had_the_masks_of_training(
    store, tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.INFO, logger="bertjax")
    save = CheckpointStore.save

    def save_as_then(checkpoints, step, params, opt_state, progress, config):
        config["eval"] = {name: config["eval"][name] for name in ("every_steps", "max_rows")}
        save(checkpoints, step, params, opt_state, progress, config)

    with monkeypatch.context() as then:
        then.setattr(CheckpointStore, "save", save_as_then)
        assert pretrain(micro(store, num_steps=1, data__mask_rate=0.4), tmp_path).exit_code == 0
    assert pretrain(micro(store, num_steps=2, data__mask_rate=0.4), tmp_path).exit_code == 0
    assert "config.eval.mask_rate changed since the checkpoint: 0.4, now 0.15" in caplog.text
    assert "do not compare with those before" in caplog.text


@pytest.mark.slow
def test_with_rounded_factors_and_auto_a_run_is_the_plain_one_but_for_rounding(
    store, whole_run, tmp_path, caplog
):
    workdir = tmp_path / "run"
    with caplog.at_level(logging.INFO, "bertjax"):
        pretrain(micro(store, num_steps=9, model__attention="auto"), workdir)
        assert "config.model.attention = 'auto' is 'xla' here" in caplog.text
        assert computed(workdir) == computed(whole_run)[: len(read(workdir))]
        rounded = micro(store, model__factors="bfloat16", model__attention="auto")
        pretrain(rounded, workdir)
    assert "config.model.factors changed since the checkpoint: 'compute', now" in caplog.text
    assert "times as fast as float32 on this processor" in caplog.text
    ours, theirs = (read(folder)[9]["loss"] for folder in (workdir, whole_run))
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert ours != theirs


def test_two_runs_on_one_workdir_are_refused(store, tmp_path):
    with loop.lock_workdir(tmp_path), pytest.raises(WorkdirInUseError, match="is in use by"):
        pretrain(micro(store), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "config.seed: 0 there, 1 here"),
        ({"optimizer__learning_rate": 1.0}, "config.optimizer.learning_rate: 0.01 there, 1.0"),
        ({"model__num_layers": 1}, "config.model.num_layers: 2 there, 1 here"),
        ({"model__attention_dropout_rate": 0.5}, "attention_dropout_rate: 0.1 there, 0.5 here"),
        ({"data__global_batch_size": 16}, "config.data.global_batch_size: 8 there, 16 here"),
    ],
)
def test_other_settings_at_resume_are_refused(store, whole_run, changes, message):
    with pytest.raises(ConfigError, match="belongs to a run with other settings") as error:
        pretrain(micro(store, **changes), whole_run)
    assert message in str(error.value)


@pytest.mark.slow
def test_steps_that_are_the_schedule_may_not_change(store, tmp_path):
    """Without phases; with them num_steps only stops early."""
    one = micro(store, phases=(), num_steps=2, optimizer__warmup_steps=1)
    assert pretrain(one, tmp_path).exit_code == 0
    with pytest.raises(ConfigError, match=r"config\.num_steps: 2 there, 4 here"):
        pretrain(dataclasses.replace(one, num_steps=4), tmp_path)


def test_another_store_at_resume_is_refused(whole_run, tmp_path):
    other = tmp_path / "store"
    write_store(other, make_tokenizer(), make_documents(50, seed=3), make_documents(9, seed=2))
    with pytest.raises(ConfigError, match=r"the text \(config.data.store or stores\): "):
        pretrain(micro(other), whole_run)


def test_another_vocabulary_is_refused_before_any_work(store, tmp_path):
    with pytest.raises(ConfigError, match=r"set --config\.model\.vocab_size=1000"):
        pretrain(micro(store, model__vocab_size=1_001), tmp_path)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
def test_divergence_halts_and_names_the_last_good_checkpoint(store, tmp_path):
    config = micro(store, optimizer__learning_rate=1e38, optimizer__max_grad_norm=0.0)
    config.checkpoint.every_steps = 1
    with pytest.raises(loop.TrainingDivergedError) as caught:
        pretrain(config, tmp_path)
    last = read(tmp_path)[-1]
    assert last["not_finite"]
    saved = max(int(p.name.split("_")[1]) for p in (tmp_path / "checkpoints").glob("step_*"))
    assert saved == last["step"] - 1
    assert f"step {last['step']}: loss nan" in str(caught.value)
    assert f"the last good checkpoint is step {saved} in" in str(caught.value)


@pytest.mark.slow
def test_without_next_sentence(store, tmp_path):
    config = micro(store, model__next_sentence=False, num_steps=2)
    assert pretrain(config, tmp_path).exit_code == 0
    line = read(tmp_path)[-1]
    assert line["nsp_loss"] is None
    assert line["loss"] == pytest.approx(line["mlm_loss"], rel=1e-5)
    assert "heldout_nsp_accuracy" not in summary(tmp_path)

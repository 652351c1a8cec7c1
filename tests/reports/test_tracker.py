"""The records of a run: files cut back on resume, terminal lines, TensorBoard, curves."""

import io
import json
import logging
import os
import pty
import subprocess
import sys
import termios

import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bertjax.config import Config, LogConfig, ModelConfig
from bertjax.objectives.objective import make_objective
from bertjax.reports.curves import plot_curves
from bertjax.reports.tracker import Tracker, step_keys, write_summary

REPORTED = make_objective(ModelConfig()).reported
CONFIG = Config(num_steps=20, log=LogConfig(tensorboard=False))
WITH_TENSORBOARD = Config(num_steps=20)


def record(step, **values):
    return {
        "step": step,
        "phase": 0,
        "position": 32 * step,
        "loss": 7.5 - 0.25 * step,
        "mlm_loss": 7.0 - 0.25 * step,
        "nsp_loss": 0.5,
        "mlm_accuracy": 0.03 * step,
        "nsp_accuracy": 0.5 + 0.02 * step,
        "learning_rate": 1e-4,
        "grad_norm": 1.5,
        "rows_sha256": f"{step:064x}",
        **values,
    }


def evaluation(step):
    return {
        "step": step,
        "phase": 0,
        "heldout_mlm_loss": 7.125 - 0.25 * step,
        "heldout_mlm_accuracy": 0.03 * step,
        "heldout_nsp_accuracy": 0.6,
        "heldout_unigram_entropy": 6.5,
        "heldout_nsp_majority": 0.53,
    }


def run_steps(workdir, first, last, config=CONFIG):
    with Tracker(workdir, config, REPORTED, resume_step=first - 1) as tracker:
        for step in range(first, last + 1):
            tracker.log_step(record(step))
            if step % 5 == 0:
                tracker.log_eval(evaluation(step))


def refuse_constant(name):
    raise AssertionError(f"{name} is not JSON")


def lines(path):
    text = path.read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse_constant) for line in text.splitlines()]


def test_a_line_is_complete_as_soon_as_it_is_logged(tmp_path):
    with Tracker(tmp_path / "new" / "run", CONFIG, REPORTED) as tracker:
        values = {"loss": jnp.float32(2.5), "grad_norm": np.float64(0.5), "phase": np.int64(1)}
        tracker.log_step(record(1, **values, mfu=None))
        (line,) = lines(tmp_path / "new" / "run" / "metrics.jsonl")  # before it is closed
        tracker.log_eval(evaluation(1))
        assert lines(tmp_path / "new" / "run" / "evals.jsonl") == [evaluation(1)]
    assert tuple(line) == step_keys(REPORTED)
    names = ("mfu", "sequences_per_second", "real_tokens_per_second", "pairs_per_row")
    unknown = dict.fromkeys((*names, "real_token_share", "predicted_tokens"))
    assert line == {**record(1), "loss": 2.5, "grad_norm": 0.5, "phase": 1, **unknown}


def test_numbers_that_are_not_finite_are_null_and_named(tmp_path):
    with Tracker(tmp_path, WITH_TENSORBOARD, REPORTED) as tracker:
        tracker.log_step(record(1, loss=jnp.float32(np.nan), grad_norm=np.inf, mlm_loss=-np.inf))
        tracker.log_eval({"step": 1, "heldout_mlm_loss": np.float32(np.nan)})
    (line,) = lines(tmp_path / "metrics.jsonl")
    assert line["loss"] is line["grad_norm"] is line["mlm_loss"] is None
    assert line["not_finite"] == {"loss": "nan", "grad_norm": "inf", "mlm_loss": "-inf"}
    assert line["nsp_loss"] == 0.5
    (line,) = lines(tmp_path / "evals.jsonl")
    assert line == {"step": 1, "heldout_mlm_loss": None, "not_finite": {"heldout_mlm_loss": "nan"}}


def test_a_name_that_is_not_a_key_is_refused(tmp_path):
    with (
        Tracker(tmp_path, CONFIG, REPORTED) as tracker,
        pytest.raises(
            ValueError, match=r"'mlm_acuracy' is not a key of metrics\.jsonl; did you me"
        ),
    ):
        tracker.log_step({"step": 1, "mlm_acuracy": 0.5})
    assert lines(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("resume_step", [0, 3, 7, 10])
@pytest.mark.parametrize("torn", [b"", b'{"step": 11, "lo', b"\x00\x00\x00", b'{"step": 7}'])
def test_no_step_stands_twice_after_a_resume(tmp_path, resume_step, torn):
    run_steps(tmp_path, 1, 10)
    whole = {name: (tmp_path / name).read_bytes() for name in ("metrics.jsonl", "evals.jsonl")}
    if torn == b'{"step": 7}':  # whole, but for its newline: kept where it is not beyond the resume
        whole["metrics.jsonl"] = whole["metrics.jsonl"].rstrip(b"\n")
        (tmp_path / "metrics.jsonl").write_bytes(whole["metrics.jsonl"])
    else:
        for name, content in whole.items():
            (tmp_path / name).write_bytes(content + torn)
    with Tracker(tmp_path, CONFIG, REPORTED, resume_step=resume_step):
        steps = lines(tmp_path / "metrics.jsonl")
        assert [line["step"] for line in steps] == list(range(1, resume_step + 1))
    run_steps(tmp_path, resume_step + 1, 12)
    for name, content in whole.items():
        assert (tmp_path / name).read_bytes().startswith(content)  # what was kept is as it was
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == list(range(1, 13))
    assert [line["step"] for line in lines(tmp_path / "evals.jsonl")] == [5, 10]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evals.jsonl", "metrics.jsonl"]


def test_a_damaged_line_is_named(tmp_path, caplog):
    run_steps(tmp_path, 1, 3)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b'{"step": 2,', b'{"stop": 2,'))
    with Tracker(tmp_path, CONFIG, REPORTED, resume_step=3):
        assert f"{path}:2 is left out" in caplog.text
    assert [line["step"] for line in lines(path)] == [1, 3]


def test_without_a_terminal_each_step_is_a_line_of_the_log(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    rates = {"sequences_per_second": 812.25, "real_tokens_per_second": 98_123.4, "mfu": 0.4125}
    with Tracker(tmp_path, Config(num_steps=10_000, log=CONFIG.log), REPORTED) as tracker:
        tracker.log_step(record(4, **rates), seconds_left=3_725.2)
        tracker.log_step(record(5, loss=float("nan")))
        tracker.log_eval(evaluation(4))
    assert [entry.getMessage() for entry in caplog.records] == [
        "step 4/10,000  1:02:05 left  loss 6.500  mlm 6.000  nsp 0.500  812.2 sequences/s  "
        "98,123 real tokens/s  MFU 41.2%",
        "step 5/10,000  loss is nan  mlm 5.750  nsp 0.500",
        "step 4  held out:  mlm loss 6.125  mlm accuracy 0.12  nsp accuracy 0.6  "
        "unigram entropy 6.5  nsp majority 0.53",
    ]


@pytest.mark.parametrize("columns", [0, 60, 200])  # 0: a terminal that does not know its width
def test_a_terminal_has_one_progress_line(tmp_path, monkeypatch, columns):
    reader, writer = pty.openpty()
    os.set_blocking(reader, False)
    termios.tcsetwinsize(writer, (24, columns))
    with os.fdopen(writer, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with Tracker(tmp_path, CONFIG, REPORTED, resume_step=5) as tracker:
            for step in (6, 7, 20):
                tracker.log_step(record(step), seconds_left=20 - step)
    text = b""
    while chunk := _read(reader):
        text += chunk
    os.close(reader)
    shown = text.decode().split("\r")
    assert any("compiling the first step" in line and " 25%" in line for line in shown)
    assert any("step 6/20  0:00:14 left  loss 6.000  mlm" in line for line in shown)
    assert any("step 20/20  0:00:00 left" in line for line in shown)
    if columns != 60:
        assert any("nsp 0.500   30% ████" in line for line in shown)
    assert max(map(len, shown)) <= (columns or 120)
    assert text.count(b"\n") == 1  # the end of it


def _read(descriptor):
    try:
        return os.read(descriptor, 65_536)
    except OSError:  # drained, and the other end is closed
        return b""


def test_only_process_0_writes(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("jax.process_index", lambda: 1)
    run_steps(tmp_path / "run", 1, 5, WITH_TENSORBOARD)
    assert not (tmp_path / "run").exists()
    assert not caplog.records


def tensorboard_scalars(folder):
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    run_steps(tmp_path, 1, 10, WITH_TENSORBOARD)
    for folder in ("train", "heldout"):
        (events,) = (tmp_path / "tensorboard" / folder).iterdir()
        events.write_bytes(events.read_bytes()[:-3])  # killed while it wrote
    assert [step for step, _ in tensorboard_scalars(events.parent)["mlm_loss"]] == [5]
    run_steps(tmp_path, 8, 12, WITH_TENSORBOARD)
    train = tensorboard_scalars(tmp_path / "tensorboard" / "train")
    heldout = tensorboard_scalars(tmp_path / "tensorboard" / "heldout")
    assert train["mlm_loss"] == [(step, 7.0 - 0.25 * step) for step in range(1, 13)]
    assert heldout["mlm_loss"] == [(step, 7.125 - 0.25 * step) for step in (5, 10)]
    assert set(heldout) - set(train) == {"unigram_entropy", "nsp_majority"}
    assert not {"step", "position", "rows_sha256", "mfu"} & set(train)


def test_tensorboard_forgets_a_run_that_starts_over(tmp_path):
    run_steps(tmp_path, 1, 5, WITH_TENSORBOARD)
    run_steps(tmp_path, 1, 3, WITH_TENSORBOARD)
    train = tensorboard_scalars(tmp_path / "tensorboard" / "train")
    assert [step for step, _ in train["loss"]] == [1, 2, 3]


def test_tensorboard_files_are_written_without_tensorflow(tmp_path):
    code = (
        "import sys, pathlib; from bertjax.reports.event_files import EventWriter\n"
        "writer = EventWriter(pathlib.Path(sys.argv[1]), 0); writer.add(1, {'loss': 2.5})\n"
        "assert not {'tensorflow', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code, tmp_path], check=True)
    assert tensorboard_scalars(tmp_path) == {"loss": [(1, 2.5)]}


def test_summary_is_strict_json_and_whole(tmp_path):
    write_summary(tmp_path, {"parameters": 7, "heldout_mlm_loss": jnp.float32(1.5), "mfu": np.nan})
    first = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse_constant)
    assert first["parameters"] == 7
    assert first["heldout_mlm_loss"] == 1.5
    assert first["mfu"] is None
    with pytest.raises(TypeError):
        write_summary(tmp_path, {"parameters": object()})
    assert json.loads((tmp_path / "summary.json").read_text()) == first
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


PANELS = [metric for metric in REPORTED if metric.title]
TRAIN, HELDOUT, BASELINE = (0x44, 0x77, 0xAA), (0xEE, 0x66, 0x77), (0x22, 0x88, 0x33)


def colours(path):
    """Which kinds of line the picture has, by their colours."""
    image = np.round(matplotlib.image.imread(io.BytesIO(path.read_bytes()))[..., :3] * 255)
    assert image.shape > (800, 1_200)
    return {kind for kind in (TRAIN, HELDOUT, BASELINE) if (image == kind).all(axis=-1).any()}


def test_curves(tmp_path):
    run_steps(tmp_path, 1, 20)
    write_summary(tmp_path, {"parameters": 28_764_736, "steps": 20, "seconds": 75.2})
    assert colours(plot_curves(tmp_path, PANELS)) == {TRAIN, HELDOUT, BASELINE}
    assert "matplotlib.pyplot" not in sys.modules or not pyplot_figures()


def test_what_is_not_trained_has_no_panel():
    without = make_objective(ModelConfig(next_sentence=False)).reported
    names = [metric.name for metric in without if metric.title]
    assert names == ["mlm_loss", "mlm_accuracy"]
    assert [panel.name for panel in PANELS] == [*names, "nsp_accuracy"]


def pyplot_figures():
    return sys.modules["matplotlib.pyplot"].get_fignums()


def test_curves_of_what_there_is(tmp_path):
    with Tracker(tmp_path, CONFIG, REPORTED) as tracker:
        assert colours(plot_curves(tmp_path, PANELS)) == set()  # nothing yet
        for step in (1, 2):
            tracker.log_step(record(step, nsp_accuracy=None, nsp_loss=None, loss=np.nan))
    assert colours(plot_curves(tmp_path, PANELS)) == {TRAIN}
    run_steps(tmp_path, 3, 5)
    assert colours(plot_curves(tmp_path, PANELS)) == {TRAIN, HELDOUT, BASELINE}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_lowest_panel_of_each_column_shows_the_steps(tmp_path, monkeypatch, count):
    """Fewer panels than places leave the second column without a picture below."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: figures.append(self) or save(self, *a, **k)
    )
    run_steps(tmp_path, 1, 5)
    plot_curves(tmp_path, PANELS[:count])
    panels = figures[0].axes
    shown = [
        axes.get_xlabel() == "step" and axes.xaxis.get_tick_params()["labelbottom"]
        for axes in panels
    ]
    assert len(panels) == count + 1
    assert shown == [False] * (count - 1) + [True] * 2

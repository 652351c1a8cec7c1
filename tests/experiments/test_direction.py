"""experiments/direction: what the arms share, where curves cross, and a page of any results."""

import json

import pytest

from bertjax.config import Config, differences
from bertjax.config.checks import validate
from experiments.direction import arms, page

ALIKE = {"model.head", "model.direction", "data.mask_rate"}


@pytest.mark.parametrize("name", arms.SIZES)
def test_arms_differ_in_the_objective_alone(name):
    size = arms.SIZES[name]
    assert set(size.fine_tuned) <= set(size.evaluated)
    assert max(size.evaluated) == size.steps
    every = size.settings["checkpoint.every_steps"]
    assert all(step % every == 0 for step in size.evaluated)
    (reference,) = arms.parts(size, "masked_15", 0)
    for arm in size.arms:
        runs = arms.parts(size, arm, 0)
        assert sum(run.config.total_steps for run in runs) == size.steps
        for run in runs:
            validate(run.config)
            assert Config.from_json(run.config.to_json()) == run.config
            allowed = ALIKE | ({"seed", "phases[0].num_steps"} if len(runs) > 1 else set())
            assert set(differences(reference.config, run.config)) <= allowed
    other = arms.parts(size, "masked_15", 1)[0]
    assert set(differences(reference.config, other.config)) == {"seed"}


def test_a_checkpoint_is_found_in_the_part_of_its_step(tmp_path):
    size = arms.SIZES["toy"]
    arm = "left_to_right_then_masked"
    for folder, step in ((f"{arm}_0_first", 6), (f"{arm}_0", 2)):
        (tmp_path / folder / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)
    found = {step: arms.checkpoint_path(tmp_path, size, arm, 0, step) for step in (4, 6, 8, 12)}
    assert [path and path.parent.parent.name for path in found.values()] == [
        None, f"{arm}_0_first", f"{arm}_0", None
    ]  # fmt: skip
    with pytest.raises(ValueError, match="beyond the 12 steps"):
        arms.checkpoint_path(tmp_path, size, arm, 0, 14)


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ([(1, 0.0), (2, 0.4), (3, 0.8)], 1.5),  # -0.2, +0.2: half-way
        ([(1, 0.3), (2, 0.4), (3, 0.8)], 1),  # never below
        ([(1, 0.3), (2, 0.1), (3, 0.5)], 2.5),  # above, below, above again: the last time counts
        ([(1, 0.3), (2, 0.2), (3, 0.5)], 1),  # touches, and is not below
        ([(1, 0.3), (2, 0.4), (3, 0.2)], None),  # below at the end
        ([(2, 0.4), (4, 0.9)], 2),  # only common steps are compared
        ([(7, 1.0)], None),
    ],
)
def test_the_step_from_which_on_a_curve_is_not_below_another(ours, expected):
    theirs = [(1, 0.2), (2, 0.2), (3, 0.4)]
    found = page.overtakes(ours, theirs)
    assert found == (expected and pytest.approx(expected))


def results():
    """Two arms with two seeds; masked_15 overtakes in the middle."""
    contents = {"train": {}, "blimp": {}, "tasks": {}}
    for arm, values in {"masked_15": (0.5, 0.7), "left_to_right": (0.55, 0.6)}.items():
        loss = "heldout_lm_loss" if arm == "left_to_right" else "heldout_mlm_loss"
        for seed in (0, 1):
            run = f"{arm}_{seed}"
            contents["train"][run] = {
                "arm": arm,
                "seed": seed,
                "evaluations": [{"step": 2_400, loss: 4.25}],
                "checkpoints": [
                    {"step": step, "predicted_tokens": 100 * step, "seconds": step / 10}
                    for step in (1_200, 2_400)
                ],
            }
            for step, value in zip((1_200, 2_400), values, strict=True):
                record = {"arm": arm, "seed": seed, "step": step, "overall": value + seed / 100}
                record["phenomena"] = {"binding": value + seed / 100}
                contents["blimp"][f"{run}_{step}"] = record
    return contents


def test_a_page_is_made_of_any_results(tmp_path):
    (tmp_path / "results").mkdir()
    page.write(tmp_path / "results", tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text.count("Not run yet.") == 8
    assert "{{" not in text
    (tmp_path / "results" / "cpu.json").write_text(json.dumps(results()))
    page.write(tmp_path / "results", tmp_path)
    text = (tmp_path / "README.md").read_text()
    # Mean 0.705; deviation 0.01 / sqrt(2), t = 12.706, n = 2: half a width of 0.0635.
    assert "| masked_15 | 0.705 (0.641 to 0.769) |" in text
    # Gaps of -0.05 and +0.10 for equal seeds; 0.01 more or less for others.
    assert "| BLiMP accuracy | masked_15 | 1,600, 1,680, 1,520, 1,600 |" in text
    assert "| masked_15 | 0, 1 | 240,000 | 240 | 4.250, 4.250 |" in text
    assert "| binding | 0.705 | 0.605 |" in text
    assert (tmp_path / "cpu.png").read_bytes().startswith(b"\x89PNG")
    assert text.count("Not run yet.") == 4


def test_every_score_is_inside_its_panel():
    panels = page.draw(results()).axes
    assert len(panels) == 3
    for panel in panels:
        low, high = panel.get_ylim()
        drawn = [y for line in panel.lines for y in line.get_ydata()]
        assert len(drawn) == 4 + 8  # means and seeds
        assert all(low < y < high for y in drawn)
        assert high - low < 0.5  # intervals of two seeds are wider


def test_seconds_are_steps_times_the_time_of_a_step():
    checkpoint = {"step": 1_600, "seconds": 999.0}
    assert page.seconds({}, "masked_15", checkpoint) == 999.0
    parts = [{"first_step": 0, "median": 0.5}, {"first_step": 1_200, "median": 0.25}]
    contents = {"times": {"masked_15": {"parts": parts}}}
    assert page.seconds(contents, "masked_15", checkpoint) == 1_200 * 0.5 + 400 * 0.25
    assert page.seconds(contents, "masked_15", checkpoint | {"step": 800}) == 400
    assert page.seconds(contents, "left_to_right", checkpoint) == 999.0


def test_the_page_is_that_of_the_results(tmp_path):
    page.write(page.RESULTS, tmp_path)
    assert (tmp_path / "README.md").read_text() == (page.FOLDER / "README.md").read_text()

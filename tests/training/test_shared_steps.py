"""How many steps two configurations have in common."""

import dataclasses

import pytest

from bertjax.config import Config, FineTuningConfig, OptimizerConfig, Phase
from bertjax.config.description import sections
from bertjax.training.shared_steps import concerns_steps, other_steps

SCHEDULE = OptimizerConfig(
    learning_rate=1e-3, warmup_steps=10, schedule="warmup_stable_decay", decay_share=0.2
)
SHORT = Config(phases=(Phase(60), Phase(40, 512, mask_rate=0.4)), optimizer=SCHEDULE)


def changed(*phases, **schedule):
    return Config(phases=phases, optimizer=dataclasses.replace(SCHEDULE, **schedule))


LAST = Phase(40, 512, mask_rate=0.4)


@pytest.mark.parametrize(
    ("other", "step", "found"),
    [
        # The short run's rate falls for the first time in step 82.
        (changed(Phase(60), Phase(140, 512, mask_rate=0.4)), 81, []),
        (
            changed(Phase(60), Phase(140, 512, mask_rate=0.4)),
            82,
            [(81, "the learning rate of step 82", (0.000776393, 0.001))],
        ),
        # Phases that have not begun may be any.
        (changed(Phase(100), Phase(100)), 60, []),
        (changed(Phase(60), Phase(20), Phase(20)), 60, []),
        (changed(Phase(100)), 61, [(60, "config.phases[0].num_steps", (60, 100))]),
        (changed(Phase(59), LAST), 60, [(59, "config.phases[0].num_steps", (60, 59))]),
        (
            changed(Phase(60), Phase(40, 512, mask_rate=0.15)),
            61,
            [
                (60, "config.phases[1].max_predictions", (208, 80)),
                (60, "config.phases[1].mask_rate", (0.4, 0.15)),
            ],
        ),
        # The value in `data` and the same value of the phase are one run.
        (changed(Phase(60, 128, 256), LAST), 80, []),
        # Rates count, not the names of schedules.
        (changed(Phase(60), LAST, schedule="constant"), 81, []),
        (
            changed(Phase(60), LAST, schedule="linear"),
            80,
            [(10, "the learning rate of step 11", (0.001, 0.0009))],
        ),
        (
            changed(Phase(60), LAST, learning_rate=2e-3),
            80,
            [(1, "the learning rate of step 2", (0.0001, 0.0002))],
        ),
        (changed(Phase(60), LAST, decay_shape="linear", end_learning_rate=1e-4), 81, []),
        (changed(Phase(60), LAST, decay_share=0.5), 51, []),
    ],
)
def test_steps_that_differ_are_named_with_the_first(other, step, found):
    assert other_steps(SHORT, other, step) == found
    back = [(at, what, (new, old)) for at, what, (old, new) in found]
    assert other_steps(other, SHORT, step) == back


def test_a_run_without_phases_is_one_phase():
    one, two = (
        Config(num_steps=n, optimizer=dataclasses.replace(SCHEDULE, decay_share=0.5))
        for n in (40, 90)
    )
    assert other_steps(one, two, 20) == []
    assert [step for step, *_ in other_steps(one, two, 40)] == [21]
    assert other_steps(one, Config(phases=(Phase(90),), optimizer=two.optimizer), 20) == []


def test_only_lengths_and_rates_concern_steps():
    names = [field.name for part in sections(FineTuningConfig()) for field in part.fields]
    assert {name for name in names if concerns_steps(name)} == {
        "num_steps",
        "phases",
        *(f"phases[0].{field.name}" for field in dataclasses.fields(Phase)),
        "optimizer.learning_rate",
        "optimizer.warmup_steps",
        "optimizer.schedule",
        "optimizer.decay_steps",
        "optimizer.decay_share",
        "optimizer.decay_shape",
        "optimizer.end_learning_rate",
        "optimizer.power",
    }

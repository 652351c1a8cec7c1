"""`config.profile`: what is traced, and that it changes nothing."""

import pytest
from jax.profiler import ProfileData
from micro_runs import computed, micro

from bertjax.pretraining.run import pretrain


def traced(workdir):
    """The numbers of the traced steps and the operations of each trace."""
    for path in sorted(workdir.glob("profile/**/*.xplane.pb")):
        steps, operations = [], set()
        for plane in ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                for event in line.events:
                    statistics = dict(event.stats)
                    if event.name == "train":
                        steps.append(statistics["step_num"])
                    if "hlo_op" in statistics:
                        operations.add(statistics["hlo_op"])
        yield sorted(steps), operations


@pytest.mark.slow
def test_the_steps_of_the_range_are_traced(store, whole_run, tmp_path):
    assert pretrain(micro(store, profile="5:8", num_steps=10), tmp_path).exit_code == 0
    [(steps, operations)] = traced(tmp_path)
    assert steps == [5, 6, 7]
    assert len(operations) > 50
    assert computed(tmp_path) == computed(whole_run)[:10]


@pytest.mark.slow
def test_a_resumed_run_traces_what_is_left_of_the_range(store, tmp_path):
    assert pretrain(micro(store, num_steps=6), tmp_path).exit_code == 0
    assert pretrain(micro(store, profile="3:8", num_steps=8), tmp_path).exit_code == 0
    [(steps, _)] = traced(tmp_path)
    assert steps == [6, 7]
    assert pretrain(micro(store, profile="3:8", num_steps=9), tmp_path).exit_code == 0
    assert len(list(traced(tmp_path))) == 1

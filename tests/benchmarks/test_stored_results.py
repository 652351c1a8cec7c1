"""The results of older versions take records of the present one."""

import copy

import pytest

from benchmarks import fine_tuning, harness, plan_table, pretraining_helps


def test_a_fine_tuning_run_stands_beside_those_of_its_setting():
    old = harness.read_contents(harness.RESULTS / "fine_tuning.json")
    for key, entry in old.items():
        setting = {name: x for name, x in entry.items() if name != "runs"}
        setting.setdefault("dtype", "float32")  # older ones had no other
        new = fine_tuning.keep(
            copy.deepcopy(old), {"setting": setting, "seed": "9", "program": "bertjax"}
        )
        assert new.keys() == old.keys()
        assert new[key]["runs"].keys() == entry["runs"].keys() | {"9"}
        assert new[key]["runs"]["9"] == {"bertjax": {"seed": "9", "program": "bertjax"}}
    first = fine_tuning.keep(None, {"setting": setting, "seed": "9", "program": "bertjax"})
    assert first == {key: setting | {"runs": {"9": new[key]["runs"]["9"]}}}


def test_fine_tuning_of_a_checkpoint_stands_under_its_task_and_rate():
    old = harness.read_contents(harness.RESULTS / "pretraining_helps.json")
    record = {"pretraining": old["pretraining"], "task": "cola", "learning_rate": "3e-4"}
    new = pretraining_helps.keep(copy.deepcopy(old), dict(record))
    assert new["tasks"]["cola"].keys() == {"1e-4", "3e-4"}
    assert new["tasks"]["stsb"] == old["tasks"]["stsb"]
    with pytest.raises(
        harness.UsageError, match="has the weights other, the results are of 2f388e"
    ):
        pretraining_helps.keep(old, record | {"pretraining": {"params_sha256": "other"}})


def test_a_plan_takes_the_place_of_the_older_one_of_its_command():
    old = harness.read_contents(harness.RESULTS / "plan.json")
    commands = [plan_table.command(record) for record in old]
    record = {"plan": commands[3], "command": "python -m benchmarks.plan_table", "date": "2027"}
    new = plan_table.keep(old, record)
    assert [plan_table.command(x) for x in new] == commands
    assert [x for x in new if x not in old] == [record]

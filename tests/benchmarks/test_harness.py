"""The harness of benchmarks: arguments, records, files of results, and reading the older ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks.__main__
from benchmarks import harness

NAMES = sorted(benchmarks.__main__.benchmarks())


def measure(args):
    return {"seconds": 1.5, "of": args.what}


def measure_all(args):
    for number in range(2):
        yield {"case": f"case {number}", "rows": number}
    raise SystemExit("the second is wrong")


def add_what(parser):
    parser.add_argument("--what", default="nothing")


def run_main(benchmark, *argv):
    """What `main` writes, and what it prints."""
    benchmark.main(list(argv))


def test_a_record_says_when_where_and_with_what_it_was_measured(tmp_path, capsys):
    target = tmp_path / "folder" / "result.json"
    benchmark = harness.Benchmark(measure, "result.json", add_what, device="none")
    run_main(benchmark, "--what=all", f"--output={target}", "--load=a test")
    record = json.loads(target.read_text())
    assert list(record) == [
        *("schema_version", "benchmark", "command", "commit", "tree_is_clean", "date", "load"),
        *("load_average", "machine", "device", "versions", "seconds", "of"),
    ]
    assert harness.FIELDS.keys() == record.keys() - {"seconds", "of"}
    assert record["schema_version"] == 1
    assert record["command"].endswith(f"--what=all --output={target} '--load=a test'")
    assert (record["load"], len(record["load_average"])) == ("a test", 3)
    assert record["device"] == harness.cpu()
    assert record["machine"]["memory_bytes"] > 2**28
    assert record["versions"].keys() >= {"python", "jax", "numpy"}
    assert json.loads(capsys.readouterr().out) == {"seconds": 1.5, "of": "all"}


def test_measurements_are_kept_one_by_one_and_in_the_place_of_older_ones(tmp_path):
    target = tmp_path / "result.json"
    old = {"case": "case 1", "rows": 9, "date": "2026-11-01"}
    target.write_text(json.dumps([old, {**old, "case": "case 2"}]))
    benchmark = harness.Benchmark(measure_all, device="none", keep=harness.rows("case"))
    with pytest.raises(SystemExit, match="the second is wrong"):
        run_main(benchmark, f"--output={target}")
    found = json.loads(target.read_text())
    assert [(x["case"], x["rows"]) for x in found] == [("case 2", 9), ("case 0", 0), ("case 1", 1)]


def test_files_of_records_by_their_fields():
    keep = harness.nested("what", "chip")
    first = {"what": "timed", "chip": "a", "rows": 1}
    second = {"what": "timed", "chip": "b", "rows": 2}
    contents = keep(keep(keep(None, {**first, "rows": 0}), second), first)
    assert contents == {"timed": {"a": first, "b": second}}
    assert harness.newest(contents, first) == first
    keep = harness.rows("what", "chip")
    assert keep(keep(keep(None, first), second), {**first, "rows": 0}) == [
        second,
        {**first, "rows": 0},
    ]


def test_arguments_that_do_not_go_together_end_with_the_usage(tmp_path, capsys):
    def refuse(args):
        raise harness.UsageError("name a --case")

    for benchmark, said in (
        (harness.Benchmark(refuse, "x.json"), "name a --case"),
        (harness.Benchmark(measure), "name the file of the result: --output=FILE"),
    ):
        with pytest.raises(SystemExit) as ended:
            run_main(benchmark)
        assert ended.value.code == 2
        assert capsys.readouterr().err.rstrip().endswith(f"error: {said}")


def test_a_measurement_may_not_overwrite_the_circumstances(tmp_path):
    target = tmp_path / "x.json"
    name_device = harness.Benchmark(lambda args: {"device": "a chip"})
    run_main(name_device, f"--output={target}")
    assert json.loads(target.read_text())["device"] == "a chip"
    other = tmp_path / "y.json"
    versions = harness.Benchmark(lambda args: {"versions": {}}, device="none")
    with pytest.raises(ValueError, match="versions: set by the harness and measured"):
        run_main(versions, f"--output={other}")
    assert not other.exists()


def test_the_commit_is_that_of_this_checkout_or_unknown(tmp_path, monkeypatch):
    def git(*arguments):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
        subprocess.run([*command, *arguments], check=True, capture_output=True)

    monkeypatch.setattr(harness, "ROOT", tmp_path)
    unknown = {"commit": None, "tree_is_clean": None}
    assert harness.commit() == unknown  # no repository
    git("init")
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (tmp_path / "code.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "one")
    commit = harness.commit()
    assert (len(commit["commit"]), commit["tree_is_clean"]) == (40, True)
    (results / "x.json").write_text("{}")  # of the benchmark before
    assert harness.commit() == commit
    (tmp_path / "code.py").write_text("2")
    assert harness.commit() == commit | {"tree_is_clean": False}
    monkeypatch.setattr(harness, "ROOT", results)  # a copy inside of another repository
    assert harness.commit() == unknown


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            {
                "date": "2026-11-23T04:25:11+00:00",
                "cpu": "EPYC",
                "cores": 2,
                "load_average": [8, 7],
            },
            ("2 x EPYC", "not recorded", "not recorded", "load average 8"),
        ),
        (
            {"date": "2026-11-24", "python": "3.11.7", "cpu": "EPYC", "machine": "busy"},
            ("EPYC", "python 3.11.7", "not recorded", "busy"),
        ),
        (
            {"date": "2026-11-26", "device": "cpu", "cpu": "2 x Xeon", "versions": {"jax": "1"}},
            ("2 x Xeon", "jax 1", "not recorded", "not recorded"),
        ),
        (
            {
                **{"date": "2026-11-29", "commit": "0123456789abcdef", "tree_is_clean": False},
                **{"load": "tests", "load_average": [0.25, 0, 0], "machine": {"cpu": "EPYC"}},
                **{"device": "NVIDIA H200", "versions": {"jax": "1"}},
            },
            ("NVIDIA H200", "jax 1", "012345678, changed", "tests, load average 0.25"),
        ),
        ({"date": "2026-11-23"}, ("not recorded",) * 4),
    ],
)
def test_records_of_any_age_are_read(record, expected):
    found = harness.circumstances(record)
    assert found["date"] == record["date"][:10]
    assert (found["device"], found["versions"], found["commit"], found["load"]) == expected
    assert list(harness.records({"a": [{"b": record}], "c": 1})) == [record]


def test_a_function_answers_from_a_process_of_its_own():
    assert harness.in_process("comma_list", "a,,b", module="harness") == ["a", "b"]


DECLARED = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(f"benchmarks.{name}").BENCHMARK.main(["--no_such_option"])
    except SystemExit as ended:
        assert ended.code == 2, (name, ended)
"""


def test_every_benchmark_declares_its_options():
    result = subprocess.run(
        [sys.executable, "-c", DECLARED, *NAMES], capture_output=True, text=True, cwd=harness.ROOT
    )
    assert result.returncode == 0, result.stderr
    usages = [line for line in result.stderr.splitlines() if line.startswith("usage: ")]
    assert [usage.split()[3] for usage in usages] == [f"benchmarks.{name}" for name in NAMES]
    assert result.stderr.count("[--load LOAD]") == len(NAMES)
    said = [line for line in result.stderr.splitlines() if ": error: " in line]
    assert [line.split()[2] for line in said] == [f"benchmarks.{name}:" for name in NAMES]


def test_benchmarks_are_listed_and_started_by_name():
    def run(*command):
        command = [sys.executable, "-m", *command]
        return subprocess.run(command, capture_output=True, text=True, cwd=harness.ROOT)

    listed = run("benchmarks").stdout.splitlines()[2:]
    assert [line.split()[0] for line in listed] == NAMES
    assert all(len(line.split()) > 3 for line in listed)
    said = run("benchmarks", "device_rates").stderr
    assert said == run("benchmarks.device_rates").stderr
    assert "python -m benchmarks.device_rates: error: name the file of the result" in said
    unknown = run("benchmarks", "no_such")
    assert unknown.returncode == 1
    assert "no benchmark no_such; there are attention_kernel" in unknown.stderr


def test_no_benchmark_has_a_parser_or_a_writer_of_its_own():
    for path in Path(harness.__file__).parent.rglob("*.py"):
        if path.name not in ("harness.py", "pages.py"):
            text = path.read_text()
            assert "ArgumentParser(" not in text, path
            assert "absl" not in text, path
            assert "write_text(json" not in text or path.name == "simulated_store.py", path

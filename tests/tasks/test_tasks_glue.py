"""Classification and regression: files, rows, metrics, and the errors of broken files."""

import gzip
import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
from english import SPECIAL

from bertjax.data.tokenizers.tokenizer import WordPieceTokenizer
from bertjax.tasks.glue import GLUE
from bertjax.tasks.metrics import METRICS
from bertjax.tasks.registry import TASKS, make_task, parse_option
from bertjax.tasks.task import TaskError

WORDS = ["a", "good", "film", "bad", "plot", '"', "the", "is"]
PAD, _UNK, CLS, SEP, _MASK = range(5)

# The official files as they are published: header or first line, then lines.
FILES = {
    "cola": ("gj04\t1\t\ta good film\nks08\t0\t*\tfilm a good", ("1", "0")),
    "sst2": ('sentence\tlabel\na good " film \t1\nbad plot\t0', ("1", "0")),
    "polarity": ("sentence\tlabel\na good film .\t1\nbad plot\t0", ("1", "0")),
    "mrpc": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
        '1\t7\t8\ta "good\tfilm\n0\t9\t8\tbad\tplot',
        ("1", "0"),
    ),
    "qqp": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\ta\tgood\t0\n9\t8\tcut\n"
        "2\t3\t4\tbad\tplot\t1",
        ("0", "1"),
    ),
    "mnli": (
        "index\tpromptID\tsentence1\tsentence2\tlabel1\tgold_label\n"
        "0\t1\ta\tgood\tneutral\tneutral\n1\t2\tbad\tplot\tneutral\tcontradiction",
        ("neutral", "contradiction"),
    ),
    "qnli": (
        "index\tquestion\tsentence\tlabel\n0\ta\tgood\tentailment\n1\tbad\tplot\tnot_entailment",
        ("entailment", "not_entailment"),
    ),
    "rte": (
        "index\tsentence1\tsentence2\tlabel\n0\ta\tgood\tnot_entailment\n1\tbad\tplot\tentailment",
        ("not_entailment", "entailment"),
    ),
    "wnli": ("index\tsentence1\tsentence2\tlabel\n0\ta\tgood\t1\n1\tbad\tplot\t0", ("1", "0")),
    "stsb": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
        "0\tn\tf\t2012\t1\tx\ty\ta\tgood\t5.000\n1\tn\tf\t2012\t2\tx\ty\tbad\tplot\t0.5",
        (5.0, 0.5),
    ),
}


@pytest.fixture(scope="module")
def tokenizer():
    return WordPieceTokenizer([*SPECIAL, *WORDS], lower_case=True)


def write(folder, name, content):
    path = folder / name
    data = content.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return str(path)


@pytest.mark.parametrize("name", GLUE)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_official_files(name, end, tmp_path):
    content, labels = FILES[name]
    path = write(tmp_path, "train.tsv.gz", content.replace("\n", end) + end)
    task = make_task(name)
    examples = task.read(path, needs_labels=True)
    assert tuple(example.label for example in examples) == labels
    assert task.with_labels(examples) is task
    assert make_task(**json.loads(json.dumps(task.settings()))) == task
    pair = examples[1].text_pair or ""
    assert f"{examples[1].text} {pair}".split() in (["bad", "plot"], ["film", "a", "good"])
    unlabelled = task.read(path, needs_labels=False)
    assert [example.label for example in unlabelled] == [None, None]
    assert [example.text for example in unlabelled] == [example.text for example in examples]
    if name in ("sst2", "mrpc"):  # a quotation mark is text
        assert '"' in examples[0].text


def test_test_files_and_files_without_a_header(tmp_path, caplog):
    path = write(tmp_path, "test.tsv", "index\tsentence\n0\ta good film\n")
    for name in ("cola", "sst2"):
        (example,) = make_task(name).read(path, needs_labels=False)
        assert (example.text, example.label, example.line) == ("a good film", None, 2)
        with pytest.raises(TaskError, match=r"test.tsv:2: no column 'label'.*index, sentence"):
            make_task(name).read(path, needs_labels=True)
    lines = "main\tMSR\t2012\t1\t2.500\ta film\tthe film\n", "m\tM\t2012\t2\t5\ta\ta\turl\turl\n"
    path = write(tmp_path, "sts.tsv", "".join(lines))
    assert [e.label for e in make_task("stsb").read(path, True)] == [2.5, 5.0]
    path = write(tmp_path, "secret.tsv", lines[0].replace("2.500", "-1.0"))
    with pytest.raises(TaskError, match=r"secret.tsv:1: label '-1.0', expected .* from 0 to 5"):
        make_task("stsb").read(path, True)
    path = write(tmp_path, "qqp.tsv", FILES["qqp"][0])
    assert len(make_task("qqp").read(path, True)) == 2
    assert "left out 1 lines that are cut short, the first is line 3" in caplog.text


def test_any_file_by_the_names_of_its_columns(tmp_path):
    options = {"text_column": "review", "text_pair_column": "title", "label_column": "stars"}
    records = [{"review": 'a "b",\nc', "title": "x", "stars": s} for s in ("two", "one", "two")]
    jsonl = "\n".join(json.dumps(record) for record in records)
    csv = "stars,title,review\n" + "".join(f'{s},x,"a ""b"",\nc"\n' for s in ("two", "one", "two"))
    for path in (write(tmp_path, "a.jsonl.gz", jsonl), write(tmp_path, "a.csv", csv)):
        task = make_task("classification", options)
        examples = task.read(path, needs_labels=True)
        assert {example.text for example in examples} == {'a "b",\nc'}
        task = task.with_labels(examples)
        assert task.label_names == ("one", "two")
        assert make_task(**json.loads(json.dumps(task.settings()))) == task
    path = write(tmp_path, "b.tsv", "stars\ttitle\treview\nthree\tx\ty\n")
    with pytest.raises(TaskError, match=r"b.tsv:2: unknown label 'three'; the labels are one, two"):
        task.read(path, needs_labels=True)
    regression = make_task("regression", options)
    with pytest.raises(TaskError, match=r"b.tsv:2: label 'three', expected a number"):
        regression.read(path, needs_labels=True)
    path = write(tmp_path, "c.jsonl", '{"review": "a", "title": "b", "stars": -1.5}')
    (example,) = regression.with_labels([]).read(path, needs_labels=True)
    assert example.label == -1.5


# Rows


def reference_rows(tokenizer, examples, max_length):
    """google-research/bert, run_classifier.py: `convert_single_example`, a list at a time."""
    rows = []
    for example in examples:
        a = tokenizer.encode(example.text)
        if example.text_pair is None:
            a = a[: max_length - 2]
        else:
            b = tokenizer.encode(example.text_pair)
            while len(a) + len(b) > max_length - 3:
                (a if len(a) > len(b) else b).pop()
        ids, types = [CLS, *a, SEP], [0] * (len(a) + 2)
        if example.text_pair is not None:
            ids += [*b, SEP]
            types += [1] * (len(b) + 1)
        padding = [0] * (max_length - len(ids))
        rows.append((ids + padding, types + padding, [1] * len(ids) + padding))
    return [np.array(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("name", ["sst2", "rte"])
@pytest.mark.parametrize("max_length", [5, 8, 13, 40])
def test_rows_are_the_reference_s(name, max_length, tokenizer, sentence_piece, monkeypatch):
    monkeypatch.setattr("bertjax.tasks.text_rows._CHUNK_ROWS", 7)  # several chunks
    task = make_task(name)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(0, 15))) for _ in range(120)]
    example = type("Example", (), {})
    examples = []
    for text, pair in zip(texts[:60], texts[60:], strict=True):
        examples.append(example())
        examples[-1].text, examples[-1].label = text, task.label_names[len(text) % 2]
        examples[-1].text_pair = pair if name == "rte" else None
    arrays = task.features(examples, tokenizer, max_length)
    ids, types, mask = reference_rows(tokenizer, examples, max_length)
    np.testing.assert_array_equal(arrays["input_ids"], ids)
    np.testing.assert_array_equal(arrays["token_type_ids"], types)
    np.testing.assert_array_equal(arrays["attention_mask"], mask)
    assert {str(arrays[key].dtype) for key in arrays} == {"int32", "float32"}
    np.testing.assert_array_equal(arrays["row_weights"], np.ones(60))
    assert arrays["labels"].tolist() == [len(e.text) % 2 for e in examples]
    others = task.features(examples, sentence_piece, max_length)
    assert (others["input_ids"][:, 0] == sentence_piece.cls_id).all()
    ends = (others["input_ids"] == sentence_piece.sep_id).sum(1)
    assert (ends == (2 if name == "rte" else 1)).all()
    with pytest.raises(TaskError, match="no room"):
        task.features(examples, tokenizer, 2)


# Predictions and scores


def outputs_of(task, examples, labels):
    if task.head == "regression":
        return {"values": np.array(labels, np.float32)}
    ids = [task.label_names.index(label) for label in labels]
    return {"logits": np.eye(task.num_labels, dtype=np.float32)[ids]}


def scored(task, examples, labels):
    records = task.predictions(examples, {}, outputs_of(task, examples, labels))
    json.dumps(records)
    return task.scores(examples, records)


@pytest.mark.parametrize("name", GLUE)
def test_right_predictions_score_one(name, tmp_path):
    task = make_task(name)
    examples = task.read(write(tmp_path, "dev.tsv", FILES[name][0]), needs_labels=True)
    scores = scored(task, examples, [example.label for example in examples])
    assert task.main_metric in scores
    assert scores == dict.fromkeys(task.metrics, pytest.approx(1.0))


def test_metrics_are_the_published_formulas():
    rng = np.random.default_rng(1)
    labels, predicted = (rng.choice(["0", "1"], 200, p=p) for p in ([0.7, 0.3], [0.4, 0.6]))
    tp, fp, fn, tn = (
        int(((labels == a) & (predicted == b)).sum())
        for a, b in (("1", "1"), ("0", "1"), ("1", "0"), ("0", "0"))
    )
    root = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    expected = {
        "accuracy": (tp + tn) / 200,
        "f1": 2 * tp / (2 * tp + fp + fn),
        "f1_macro": tp / (2 * tp + fp + fn) + tn / (2 * tn + fp + fn),
        "matthews": (tp * tn - fp * fn) / root,
    }
    for name, value in expected.items():
        assert METRICS[name](labels, predicted) == pytest.approx(value, abs=1e-12)
    x, y = rng.normal(size=50), rng.integers(0, 9, 50).astype(float)
    ranks = [np.array([((v < u).sum() + (v <= u).sum()) / 2 for u in v]) for v in (x, y)]
    for name, (a, b) in {"pearson": (x, y), "spearman": ranks}.items():
        a, b = a - a.mean(), b - b.mean()
        value = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
        assert METRICS[name](x, y) == pytest.approx(value, abs=1e-12)


def test_degenerate_cases_give_zero_and_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert METRICS["matthews"](["0", "1"], ["1", "1"]) == 0.0
        assert METRICS["matthews"](["1", "1"], ["1", "1"]) == 0.0
        assert METRICS["f1"](["0", "0"], ["0", "0"]) == 0.0
        assert METRICS["f1_macro"](["a", "a"], ["b", "b"]) == 0.0
        assert METRICS["accuracy"](["1"], ["1"]) == 1.0
        for name in ("pearson", "spearman"):
            assert METRICS[name]([1.0, 2.0], [3.0, 3.0]) == 0.0
            assert METRICS[name]([1.0], [3.0]) == 0.0
            nearly = METRICS[name]([1.0, 2.0, 3.0], [1.0, 1.0, 1.0 + 1e-15])
            assert np.isfinite(nearly)


def test_mnli_scores_its_two_sets_apart(tmp_path):
    task = make_task("mnli")
    sets = [write(tmp_path, f"dev_{x}matched.tsv", FILES["mnli"][0]) for x in ("", "mis")]
    examples = task.read(",".join(sets), needs_labels=True)
    scores = scored(task, examples, ["neutral", "neutral", "neutral", "contradiction"])
    assert scores == {"accuracy": 0.75, "accuracy_matched": 0.5, "accuracy_mismatched": 1.0}
    assert scored(task, examples[:2], ["neutral", "neutral"]) == {"accuracy": 0.5}


def test_mnli_sets_are_told_by_their_files_not_their_folder(tmp_path):
    (folder := tmp_path / "mnli_mismatched").mkdir()
    sets = [write(folder, f"dev_{x}matched.tsv", FILES["mnli"][0]) for x in ("", "mis")]
    task = make_task("mnli")
    examples = task.read(",".join(sets), needs_labels=True)
    scores = scored(task, examples, ["neutral", "neutral", "neutral", "contradiction"])
    assert scores == {"accuracy": 0.75, "accuracy_matched": 0.5, "accuracy_mismatched": 1.0}


@pytest.mark.parametrize("name", ["cola", "qqp", "stsb"])
def test_tasks_of_files_without_a_header_read_json_lines_too(name, tmp_path):
    texts = {"question1": "a", "question2": "b"} if name == "qqp" else {"sentence": "a"}
    texts = {"sentence1": "a", "sentence2": "b"} if name == "stsb" else texts
    label = {"cola": "label", "qqp": "is_duplicate", "stsb": "score"}[name]
    path = write(tmp_path, "a.jsonl", json.dumps(texts | {label: 1}) + "\n")
    (example,) = make_task(name).read(path, needs_labels=True)
    assert (example.text, float(example.label)) == ("a", 1.0)


def test_empty_lines_are_no_rows(tmp_path):
    path = write(tmp_path, "a.tsv", "sentence\tlabel\nx\t1\n\n")
    (example,) = make_task("sst2").read(path, needs_labels=True)
    assert (example.text, example.line) == ("x", 2)


def test_probabilities_and_refused_outputs(tmp_path):
    task = make_task("sst2")
    examples = task.read(write(tmp_path, "dev.tsv", FILES["sst2"][0]), needs_labels=True)
    logits = np.log(np.array([[1.0, 3.0], [4.0, 1.0]], np.float32)) + 300
    records = task.predictions(examples, {}, {"logits": logits})
    assert [record["label"] for record in records] == ["1", "0"]
    assert records[0]["probabilities"] == pytest.approx({"0": 0.25, "1": 0.75}, rel=1e-4)
    with pytest.raises(TaskError, match=r"shape \(1, 2\), expected \(2, 2\)"):
        task.predictions(examples, {}, {"logits": logits[:1]})
    with pytest.raises(TaskError, match="no 'logits', only values"):
        task.predictions(examples, {}, {"values": logits})
    logits[1, 0] = np.nan
    with pytest.raises(TaskError, match=r"not finite in 1 of 2 rows, first in row 1"):
        task.predictions(examples, {}, {"logits": logits})
    with pytest.raises(TaskError, match="1 predictions for 2 examples"):
        task.scores(examples, records[:1])
    unlabelled = task.read(examples[0].source, needs_labels=False)
    with pytest.raises(TaskError, match=r"dev.tsv:2: no label to score against"):
        task.scores(unlabelled, records)


# Errors


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "sentense\tlabel\nx\t1\n", r"a.tsv:2: no column 'sentence'; did you mean "
         r"'sentense'\? \(there are sentense, label\)"),
        ("a.tsv", "sentence\tlabel\nx\t1\ny\n", r"a.tsv:3: 1 columns found, 2 expected"),
        ("a.tsv", "sentence\tlabel\nx\ty\t1\n", r"a.tsv:2: 3 columns found, 2 expected"),
        ("a.tsv", "sentence\tlabel\nx\t2\n", r"a.tsv:2: unknown label '2'; the labels are 0, 1; "
         r"correct the line"),
        ("a.tsv", "sentence\tlabel\nx\t\n", r"a.tsv:2: has no label"),
        ("a.tsv", "sentence\tlabel\n", r"a.tsv: has no examples, only its header"),
        ("a.tsv", "sentence\tsentence\n", r"a.tsv:1: a column comes twice"),
        ("a.tsv", "", r"a.tsv: is empty; fetch it again"),
        ("a.csv", "\ufeff\n", r"a.csv: is empty; fetch it again"),
        ("a.tsv.gz", "  \n", r"a.tsv.gz: is empty"),
        ("a.jsonl", '{"sentence": "x", "label": "1"}\n{"sent', r"a.jsonl:2: not JSON"),
        ("a.jsonl", "[1]", r"a.jsonl:1: found list, expected a JSON object"),
        ("a.jsonl", '{"sentence": 3, "label": 1}', r"a.jsonl:1: column 'sentence' is 3, expected"),
        ("a.csv", 'sentence,label\n"x,1\n', r"a.csv:2: not CSV"),
        ("a.parquet", "x", r"a.parquet: expected a name that ends in .tsv"),
    ],
)  # fmt: skip
def test_broken_files_are_refused_by_line(name, content, message, tmp_path):
    with pytest.raises(TaskError, match=message):
        make_task("sst2").read(write(tmp_path, name, content), needs_labels=True)


def test_a_file_cut_inside_of_its_last_column_is_told_by_its_last_line(tmp_path, caplog):
    """CoLA's last column is the text: what is left of it is a whole record."""
    task = make_task("cola")
    lines = "gj04\t1\t\tThe cat sat.\ngj04\t0\t*\tCat the sat on"
    assert len(task.read(write(tmp_path, "whole.tsv", lines + ".\n"), needs_labels=True)) == 2
    assert not caplog.records
    assert len(task.read(write(tmp_path, "cut.tsv", lines), needs_labels=True)) == 2
    assert "cut.tsv:2: the last line has no line end; if the file was cut short" in caplog.text


def test_files_that_cannot_be_read(tmp_path):
    task = make_task("sst2")
    (folder := tmp_path / "folder.tsv").mkdir()
    with pytest.raises(TaskError, match=r"no.tsv: cannot be read: No such file.*working directory"):
        task.read(str(tmp_path / "no.tsv"), needs_labels=True)
    with pytest.raises(TaskError, match="cannot be read: Is a directory"):
        task.read(str(folder), needs_labels=True)
    with pytest.raises(TaskError, match="no file to read is given"):
        task.read(" , ", needs_labels=True)
    path = tmp_path / "cut.tsv.gz"
    path.write_bytes(gzip.compress(b"sentence\tlabel\n" + b"a good film\t1\n" * 500)[:-20])
    with pytest.raises(TaskError, match=r"cut.tsv.gz: the gzip file is broken or cut short"):
        task.read(str(path), needs_labels=True)
    path = tmp_path / "latin.tsv"
    path.write_bytes(b"sentence\tlabel\ncaf\xe9\t1\n")
    with pytest.raises(TaskError, match=r"latin.tsv:2: not UTF-8 \(byte 0xe9\)"):
        task.read(str(path), needs_labels=True)


def test_a_number_beyond_all_is_refused(tmp_path):
    path = write(
        tmp_path, "a.jsonl", f'{{"sentence1": "", "sentence2": "", "score": 1{"0" * 400}}}'
    )
    with pytest.raises(TaskError, match=r"a.jsonl:1: label 10+, expected a number"):
        make_task("stsb").read(path, needs_labels=True)


def test_the_tasks_of_any_file_import_no_other_task():
    """So that a task may be built on one of them."""
    code = "import sys, bertjax.tasks.glue; sys.exit('bertjax.tasks.ner.ner' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_and_options_are_checked():
    with pytest.raises(TaskError, match=r"no task 'colla'; did you mean 'cola'\?"):
        make_task("colla")
    for name in set(TASKS) - set(GLUE):
        with pytest.raises(TaskError, match=f"task {name} has no option 'lable_column'"):
            make_task(name, {"lable_column": "x"})
    with pytest.raises(TaskError, match="task cola has no option 'text_column'; it has none"):
        make_task("cola", {"text_column": "x"})
    with pytest.raises(
        TaskError, match="option 'text_column' of task regression is 3, expected str"
    ):
        make_task("regression", {"text_column": 3})
    with pytest.raises(TaskError, match=r"'label_names' of task classification.*once each"):
        make_task("classification", {"label_names": ["a", "a"]})
    examples = [type("Example", (), {"label": "a"})()]
    with pytest.raises(TaskError, match=r"1 different labels \(a\).*label_column = 'label'"):
        make_task("classification").with_labels(examples)


def test_real_files(shared_data):
    counts = {
        "cola": ("cola/in_domain_dev.tsv", 527),
        "sst2": ("sst2/dev.tsv", 872),
        "polarity": ("polarity/dev.tsv", 1066),
        "stsb": ("stsb/sts-dev.tsv", 1500),
    }
    for name, (path, count) in counts.items():
        task = make_task(name)
        examples = task.read(str(shared_data / path), needs_labels=True)
        assert len(examples) == count
        assert all(example.text.strip() for example in examples)
        labels = [example.label for example in examples]
        assert scored(task, examples, labels)[task.main_metric] == pytest.approx(1.0)
    assert min(labels) == 0.0
    assert max(labels) == 5.0


@pytest.mark.parametrize(
    ("task", "option", "text", "value"),
    [
        ("classification", "text_column", "1", "1"),  # a table's columns may be called so
        ("classification", "label_names", '["no", "yes"]', ["no", "yes"]),
        ("ner", "word_column", "1", 1),
        ("ner", "separator", "tab", "tab"),
        ("squad", "doc_stride", "many", "many"),
        ("squad", "no_such", "3", 3),
    ],
)
def test_option_of_a_command_line(task: str, option: str, text: str, value: object) -> None:
    assert parse_option(task, option, text) == value


@pytest.mark.parametrize(
    ("task", "option"), [("classification", "label_names"), ("ner", "entity_types")]
)
def test_names_that_are_lists_are_refused(task: str, option: str) -> None:
    with pytest.raises(TaskError, match=f"option '{option}' .* expected names, once each"):
        make_task(task, {option: [["a"], ["b"]]})

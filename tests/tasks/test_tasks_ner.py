"""Named entities: files, schemes, rows, and scores by entity."""

import gzip
import json
import warnings

import numpy as np
import pytest

from bertjax.data.tokenizers.tokenizer import from_argument
from bertjax.tasks.ner.data import scheme_of, to_bio
from bertjax.tasks.ner.ner import entity_scores
from bertjax.tasks.registry import make_task
from bertjax.tasks.task import TaskError

BIO = "Mary\tB-PER\nAnn\tI-PER\nof\tO\nNew\tB-LOC\nYork\tI-LOC\n\nParis\tB-LOC\nBonn\tB-LOC\n"
IO = "-DOCSTART- O\n\nMary I-PER\nAnn I-PER\nof O\nNew I-LOC\nYork I-LOC\n\n\nParis I-LOC\n"
IOB1 = "Mary NNP I-PER\nof IN O\n \nParis NNP I-LOC\nBonn NNP B-LOC\nRhine NNP I-LOC"


def write(folder, content, name="ner.txt"):
    path = folder / name
    data = content.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return str(path)


def perfect(task, arrays):
    return {"logits": np.eye(task.num_labels, dtype=np.float32)[arrays["tag_ids"]]}


# Files and schemes


@pytest.mark.parametrize(
    ("content", "scheme", "tags"),
    [
        (BIO, "BIO", [("B-PER", "I-PER", "O", "B-LOC", "I-LOC"), ("B-LOC", "B-LOC")]),
        (IO, "IO", [("B-PER", "I-PER", "O", "B-LOC", "I-LOC"), ("B-LOC",)]),
        (IOB1, "IOB1", [("B-PER", "O"), ("B-LOC", "B-LOC", "I-LOC")]),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_schemes_are_recognised_and_become_bio(content, scheme, tags, end, tmp_path):
    path = write(tmp_path, content.replace("\n", end), "a.conll.gz")
    task = make_task("ner")
    sentences = task.read(path, needs_labels=True)
    assert [sentence.tags for sentence in sentences] == tags
    assert {sentence.scheme for sentence in sentences} == {scheme}
    assert sentences[0].words[0] == "Mary"
    assert sentences[0].line == (3 if scheme == "IO" else 1)
    task = task.with_labels(sentences)
    assert task.label_names == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    assert make_task(**json.loads(json.dumps(task.settings()))) == task
    unlabelled = task.read(path, needs_labels=False)
    assert [s.words for s in unlabelled] == [s.words for s in sentences]
    assert {s.tags for s in unlabelled} == {()}


def test_bio_with_a_slip_and_types_that_meet():
    slip = ["I-X", "O", "B-X", "I-Y", "I-Y", "B-Y"]
    assert scheme_of([slip]) == "BIO"
    assert to_bio(slip) == ["B-X", "O", "B-X", "B-Y", "I-Y", "B-Y"]
    assert scheme_of([["I-X", "I-Y"], ["I-X", "B-X"]]) == "IOB1"
    assert scheme_of([["O"]]) == "IO"


def test_columns_in_any_order(tmp_path):
    path = write(tmp_path, "1\tB-LOC\tNew York\tx\n2\tO\tis\tx\n")
    options = {"word_column": 2, "tag_column": 1, "separator": "tab"}
    (sentence,) = make_task("ner", options).read(path, needs_labels=True)
    assert sentence.words == ("New York", "is")
    assert sentence.tags == ("B-LOC", "O")


# Rows


@pytest.mark.parametrize("kind", ["wordpiece", "sentence_piece"])
@pytest.mark.parametrize("max_length", [3, 4, 9, 30])
def test_each_word_is_in_one_row(kind, max_length, request, tmp_path):
    tokenizer = request.getfixturevalue(kind)
    rng = np.random.default_rng(0)
    words = ["attribute", "the", "Zbigniew-Xylophone", "\u200b", "中文字", "is", "(", "1,234"]
    lines = []
    for _ in range(30):
        for word in rng.choice(words, rng.integers(1, 25)):
            lines.append(f"{word} {rng.choice(['O', 'B-A', 'I-A', 'B-B'])}")
        lines.append("")
    task = make_task("ner")
    sentences = task.read(write(tmp_path, "\n".join(lines)), needs_labels=True)
    task = task.with_labels(sentences)
    arrays = task.features(sentences, tokenizer, max_length)
    carried: dict[int, list] = {}
    for row, number in enumerate(arrays["example_index"]):
        ids = arrays["input_ids"][row][: arrays["attention_mask"][row].sum()].tolist()
        assert ids[0] == tokenizer.cls_id
        assert ids[-1] == tokenizer.sep_id
        columns = np.flatnonzero(arrays["tag_weights"][row])
        assert (arrays["word_index"][row] >= 0).nonzero()[0].tolist() == columns.tolist()
        for column, end in zip(columns, [*columns[1:], len(ids) - 1], strict=True):
            word = arrays["word_index"][row, column]
            pieces = tokenizer.encode(sentences[number].words[word]) or [tokenizer.unk_id]
            assert ids[column:end] == pieces[: max_length - 2]
            tag = task.label_names[arrays["tag_ids"][row, column]]
            carried.setdefault(number, []).append((word, tag))
    for number, sentence in enumerate(sentences):  # every word once, in order, with its tag
        assert carried[number] == list(enumerate(sentence.tags))
    rows_of = arrays["example_index"]
    assert len(rows_of) > len(sentences)
    for row in range(1, len(rows_of)):  # a row is only left where the next word has no room
        if rows_of[row] == rows_of[row - 1]:
            used = arrays["attention_mask"][row - 1].sum()
            columns = [*np.flatnonzero(arrays["tag_weights"][row])[:2], 99]
            first = min(columns[1], arrays["attention_mask"][row].sum() - 1) - columns[0]
            assert used + first > max_length
    assert {str(array.dtype) for array in arrays.values()} == {"int32", "float32"}
    records = task.predictions(sentences, arrays, perfect(task, arrays))
    assert [tuple(record["tags"]) for record in records] == [s.tags for s in sentences]
    assert [tuple(record["words"]) for record in records] == [s.words for s in sentences]
    json.dumps(records)


def test_rows_without_tags_and_without_room(wordpiece, tmp_path):
    path = write(tmp_path, BIO)
    task = make_task("ner", {"entity_types": ["LOC", "PER"]})
    sentences = task.read(path, needs_labels=False)
    arrays = task.features(sentences, wordpiece, 20)
    assert "tag_ids" not in arrays
    logits = np.zeros((2, 20, 5), np.float32)
    logits[..., 3] = 1
    records = task.predictions(sentences, arrays, {"logits": logits})
    assert records[1] == {"words": ["Paris", "Bonn"], "tags": ["B-PER", "B-PER"]}
    with pytest.raises(TaskError, match=r"ner.txt:1: 5 tags predicted, 0 are there"):
        task.scores(sentences, records)
    with pytest.raises(TaskError, match="max_length = 2 has no room"):
        task.features(sentences, wordpiece, 2)
    with pytest.raises(TaskError, match="unknown tag 'B-PER'; the tags are not set"):
        make_task("ner").features(task.read(path, needs_labels=True), wordpiece, 20)


# Scores


def entities(tags):
    """conlleval's chunks, a transcription: (type, first, last)."""
    found, start = set(), None
    previous_prefix, previous_type = "O", ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        ends = previous_prefix in "BI" and (prefix in "BO" or kind != previous_type)
        if previous_prefix in "BI" and ends:
            found.add((previous_type, start, place - 1))
        begins = prefix == "B" or (
            prefix == "I" and (previous_prefix == "O" or kind != previous_type)
        )
        if begins:
            start = place
        previous_prefix, previous_type = prefix, kind
    return found


def conlleval(truth, predicted, kind=None):
    right = there = said = 0
    for tags, guesses in zip(truth, predicted, strict=True):
        want, got = ({e for e in entities(t) if kind in (None, e[0])} for t in (tags, guesses))
        right, there, said = right + len(want & got), there + len(want), said + len(got)
    precision, recall = right / said if said else 0.0, right / there if there else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}


def test_scores_are_conlleval_s_on_random_tags():
    rng = np.random.default_rng(2)
    names = ["O", "B-A", "I-A", "B-B", "I-B", "B-C", "I-C"]
    truth = [list(rng.choice(names, rng.integers(1, 12))) for _ in range(200)]
    predicted = [
        [str(rng.choice(names)) if rng.random() < 0.3 else tag for tag in tags] for tags in truth
    ]
    scores = entity_scores(truth, predicted, ["A", "B", "C"])
    expected = conlleval(truth, predicted)
    for kind in "ABC":
        expected |= {
            f"{kind}/{key}": value for key, value in conlleval(truth, predicted, kind).items()
        }
    assert scores == pytest.approx(expected, abs=1e-12)
    assert 0.2 < scores["f1"] < 0.9


def test_degenerate_scores_are_zero_without_a_warning():
    zero = dict.fromkeys(["precision", "recall", "f1"], 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for truth, predicted in (("O", "O"), ("B-A", "O"), ("O", "B-A"), ("B-A", "B-B")):
            scores = entity_scores([[truth]], [[predicted]], ["A", "B"])
            assert scores == zero | {f"{k}/{m}": 0.0 for k in "AB" for m in zero}
    # Half an entity is a wrong one, and one of another type too.
    assert entity_scores([["B-A", "I-A"]], [["B-A", "O"]], ["A"])["f1"] == 0.0


# Errors


@pytest.mark.parametrize(
    ("options", "content", "message"),
    [
        ({}, "a O\nb\n", r"ner.txt:2: 1 columns found, 2 expected"),
        ({"separator": "tab"}, "a\tO\nb\tc\tO\n", r"ner.txt:2: 3 columns found, 2 expected"),
        ({}, "a O\nb PER\n", r"ner.txt:2: tag 'PER', expected O, B-TYPE or I-TYPE; is tag_column"),
        ({"tag_column": 0}, "a O\n", r"ner.txt:1: tag 'a', expected O"),
        ({"word_column": 2}, "a O\n", r"ner.txt:1: no column 2 \(word_column\); there are 2"),
        ({"entity_types": ["LOC"]}, "a O\nb B-LOC\nc I-PER\n",
         r"ner.txt:3: unknown entity type 'PER'; the types are LOC; correct the tag, or "
         r"--option='entity_types=\[\"LOC\", \"PER\"\]'"),
        ({}, "", r"ner.txt: is empty"),
        ({}, "-DOCSTART- O\n\n", r"ner.txt: has no sentences"),
    ],
)  # fmt: skip
def test_broken_files_are_refused_by_line(options, content, message, tmp_path):
    with pytest.raises(TaskError, match=message):
        make_task("ner", options).read(write(tmp_path, content), needs_labels=True)


def test_a_no_break_space_is_part_of_its_word(tmp_path):
    path = write(tmp_path, "1\u00a0000 \t O\nx  B-A\n\u00a0\tO\n")
    (sentence,) = make_task("ner").read(path, needs_labels=True)
    assert sentence.words == ("1\u00a0000", "x", "\u00a0")


def test_other_errors(tmp_path):
    with pytest.raises(TaskError, match=r"separator.*'comma', expected 'whitespace' or 'tab'"):
        make_task("ner", {"separator": "comma"})
    with pytest.raises(TaskError, match="'word_column' of task ner is True, expected int"):
        make_task("ner", {"word_column": True})
    with pytest.raises(TaskError, match="task ner reads CoNLL files only"):
        make_task("ner").read("tfds:conll2003:train", needs_labels=True)
    sentences = make_task("ner").read(write(tmp_path, "a O\n"), needs_labels=True)
    with pytest.raises(TaskError, match="the examples have no entity"):
        make_task("ner").with_labels(sentences)


# Real data


@pytest.mark.parametrize(
    ("name", "scheme", "words", "num_types"),
    [
        ("wikigold.conll.txt", "IO", 39_007, 4),
        ("emerging.dev.conll", "BIO", 15_733, 6),
    ],
)
def test_real_files(name, scheme, words, num_types, shared_data):
    task = make_task("ner")
    sentences = task.read(str(shared_data / "ner" / name), needs_labels=True)
    assert sum(len(sentence.words) for sentence in sentences) == words
    assert sentences[0].scheme == scheme
    task = task.with_labels(sentences)
    assert task.num_labels == 1 + 2 * num_types
    tokenizer = from_argument(str(shared_data / "vocab" / "bert-base-uncased-vocab.txt"))
    arrays = task.features(sentences, tokenizer, 64)
    assert int(arrays["tag_weights"].sum()) == words
    scores = task.scores(sentences, task.predictions(sentences, arrays, perfect(task, arrays)))
    assert len(scores) == 3 + 3 * num_types
    assert set(scores.values()) == {1.0}

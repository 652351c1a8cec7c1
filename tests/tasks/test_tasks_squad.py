"""Question answering: files, windows, the search for answers, and the official scores."""

import gzip
import json

import numpy as np
import pytest
import squad_reference as reference
from english import SPECIAL, TEXT

from bertjax.data.tokenizers.tokenizer import WordPieceTokenizer, from_argument
from bertjax.tasks.registry import make_task
from bertjax.tasks.squad.metrics import evaluate
from bertjax.tasks.task import TaskError, join_outputs

WORDS = [f"w{i}" for i in range(40)]


def article(*paragraphs):
    """An article of (context, (id, question, (answer, ...)), ...); an answer stands once."""
    return {
        "title": "t",
        "paragraphs": [
            {
                "context": context,
                "qas": [
                    {
                        "id": id,
                        "question": question,
                        "answers": [{"text": a, "answer_start": context.index(a)} for a in answers],
                    }
                    for id, question, answers in questions
                ],
            }
            for context, *questions in paragraphs
        ],
    }


def write(folder, *articles, name="squad.json"):
    path = folder / name
    data = json.dumps({"version": "1.1", "data": articles}).encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return str(path)


@pytest.fixture(scope="module")
def word_tokenizer():
    return WordPieceTokenizer([*SPECIAL, *WORDS], lower_case=True)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Questions about paragraphs of 5 to 150 words w0 ... w39, one space between."""
    rng = np.random.default_rng(3)
    paragraphs = []
    for number in range(25):
        words = list(rng.choice(WORDS, rng.integers(5, 150)))
        first = int(rng.integers(len(words)))
        answer = " ".join(words[first : first + int(rng.integers(1, 5))])
        question = " ".join(rng.choice(WORDS, rng.integers(1, 12)))
        paragraphs.append((" ".join(words), (str(number), question, [answer])))
    path = write(tmp_path_factory.mktemp("squad"), article(*paragraphs), name="s.json.gz")
    return make_task("squad").read(path, needs_labels=True)


def pointing_at(arrays, positions=("start_positions", "end_positions")):
    """Outputs that point at the arrays' own answers."""
    outputs = {}
    for name, position in zip(("start_logits", "end_logits"), positions, strict=True):
        outputs[name] = np.zeros(arrays["input_ids"].shape, np.float32)
        outputs[name][np.arange(len(arrays[position])), arrays[position]] = 9.0
    return outputs


# Windows


@pytest.mark.parametrize(
    ("max_length", "stride", "query"), [(24, 5, 8), (24, 60, 8), (40, 16, 4), (200, 9, 9)]
)
def test_rows_are_the_reference_s(max_length, stride, query, questions, word_tokenizer):
    task = make_task("squad", {"doc_stride": stride, "max_query_length": query})
    arrays = task.features(questions, word_tokenizer, max_length)
    cls, sep = word_tokenizer.cls_id, word_tokenizer.sep_id
    row = 0
    for number, question in enumerate(questions):
        answer = question.answers[0]
        pieces, held = reference.positions(
            question.context, answer.start, answer.text, word_tokenizer.encode
        )
        asked = word_tokenizer.encode(question.question)[:query]
        first = len(asked) + 2
        spans = reference.doc_spans(len(pieces), max_length - len(asked) - 3, stride)
        for current, (start, length) in enumerate(spans):
            ids = [cls, *asked, sep, *pieces[start : start + length], sep]
            assert arrays["example_index"][row] == number
            padding = [0] * (max_length - len(ids))
            assert arrays["input_ids"][row].tolist() == ids + padding
            types = [0] * first + [1] * (length + 1)
            assert arrays["token_type_ids"][row].tolist() == types + padding
            assert arrays["attention_mask"][row].tolist() == [1] * len(ids) + padding
            inside = start <= held[0] and held[1] < start + length
            want = [h - start + first for h in held] if inside else [0, 0]
            found = [arrays[f"{name}_positions"][row] for name in ("start", "end")]
            assert found == want
            for column in range(max_length):
                may_end = first <= column < first + length
                may_start = may_end and reference.is_max_context(
                    spans, current, column - first + start
                )
                assert (arrays["answer_ends"][row, column] >= 0) == may_end
                assert (arrays["answer_starts"][row, column] >= 0) == may_start
            row += 1
    assert row == len(arrays["input_ids"])
    assert {str(array.dtype) for array in arrays.values()} == {"int32", "float32"}
    assert row > len(questions) or max_length == 200


def test_rows_without_answers_and_without_room(questions, word_tokenizer, tmp_path):
    task = make_task("squad")
    with pytest.raises(TaskError, match=r"max_length = 67 has no room.*give at least 68"):
        task.features(questions, word_tokenizer, 67)
    path = write(tmp_path, article(("w1 w2 w3", ("a", "w4", []))))
    unlabelled = task.read(path, needs_labels=False)
    arrays = task.features(unlabelled, word_tokenizer, 80)
    assert "start_positions" not in arrays
    records = task.predictions(unlabelled, arrays, pointing_at(arrays, ("example_index",) * 2))
    with pytest.raises(TaskError, match="question a: no answer to score against"):
        task.scores(unlabelled, records)
    with pytest.raises(TaskError, match="question a: has no answers"):
        task.read(path, needs_labels=True)


# The search


@pytest.mark.parametrize("digits", [6, 0])  # 0: many equal logits
def test_search_is_the_reference_s(digits, questions, word_tokenizer):
    options = {"doc_stride": 9, "max_query_length": 6, "n_best": 8, "max_answer_length": 5}
    task = make_task("squad", options)
    arrays = task.features(questions, word_tokenizer, 30)
    rng = np.random.default_rng(4)
    shape = arrays["input_ids"].shape
    outputs = {
        name: rng.normal(size=shape).round(digits).astype(np.float32)
        for name in ("start_logits", "end_logits")
    }
    records = task.predictions(questions, arrays, outputs)
    row = found = 0
    for question, record in zip(questions, records, strict=True):
        words = question.context.split(" ")
        first = min(len(word_tokenizer.encode(question.question)), 6) + 2
        spans = reference.doc_spans(len(words), 30 - first - 1, 9)
        windows = []
        for current, (start, length) in enumerate(spans):
            piece_of = {first + i: start + i for i in range(length)}
            is_max = {
                column: reference.is_max_context(spans, current, piece)
                for column, piece in piece_of.items()
            }
            logits = [outputs[name][row].tolist() for name in ("start_logits", "end_logits")]
            windows.append((*logits, piece_of, is_max))
            row += 1
        want = reference.search(windows, 8, 5, lambda a, b: " ".join(words[a : b + 1]))  # noqa: B023
        assert record["id"] == question.id
        if not want:
            want = [("", 0.0, 0.0, 1.0)]
        assert record["text"] == want[0][0]
        assert [tuple(n.values())[0::2] for n in record["nbest"]] == [w[:2] for w in want]
        for entry, (_, _, end_logit, probability) in zip(record["nbest"], want, strict=True):
            assert entry["end_logit"] == end_logit
            assert entry["probability"] == pytest.approx(probability, abs=1e-12)
            found += 1
    assert found > 100
    files = json.loads(json.dumps(task.files(records)))
    assert files["predictions.json"] == {r["id"]: r["text"] for r in records}
    assert files["nbest_predictions.json"]["3"] == records[3]["nbest"]


TRICKY = [
    ("The na\u00efve Fran\u00e7ois (1895-1943), of the U.S.A.", "Fran\u00e7ois"),
    ("The nai\u0308ve Franc\u0327ois (1895-1943).", "Franc\u0327ois"),
    ("The leader was John Smith (1895-1943).", "1895"),
    ("It cost \u20ac5,000.50\u00a0in  all; so\nwhat?", "5,000.50\u00a0in  all"),
    ("İSTANBUL was not Constantinople \u2014 \ufb01ne.", "İSTANBUL"),
    ("东京是日本的首都, 是吗?", "日本"),
    ("서울은 한국의 수도이다.", "한국의"),
    ("zero\u200bwidth and e\x0bf", "zero\u200bwidth"),
]


@pytest.mark.parametrize("kind", ["uncased", "cased", "sentence_piece"])
def test_answers_come_back_as_they_stand_in_the_text(kind, request, tmp_path):
    if kind == "sentence_piece":
        tokenizer = request.getfixturevalue("sentence_piece")
    else:
        characters = sorted({c for code in range(0x21, 0x250) if (c := chr(code)).isprintable()})
        more = [chr(c) for c in range(0x1100, 0x1200)] + list(
            "东京日本是的首都吗서울은한국의수도이다\u20ac\u2014"
        )
        pieces = [*characters, *more]
        pieces += [f"##{piece}" for piece in pieces] + [
            "##\ufb01",
            "\ufb01",
            "##\u0308",
            "##\u0327",
        ]
        pieces = [*SPECIAL, *dict.fromkeys(p for p in pieces if p.strip())]
        tokenizer = WordPieceTokenizer(pieces, lower_case=kind == "uncased")
    paragraphs = [(c, (str(i), "what is it", [a])) for i, (c, a) in enumerate(TRICKY)]
    task = make_task("squad", {"max_query_length": 16})
    examples = task.read(write(tmp_path, article(*paragraphs)), needs_labels=True)
    arrays = task.features(examples, tokenizer, 100)
    records = task.predictions(examples, arrays, pointing_at(arrays))
    expected = [answer for _, answer in TRICKY]
    if kind == "sentence_piece":  # this model knows no Hangul and no ideographs: one unknown piece
        expected[5] = records[5]["text"]
        assert "日本" in expected[5]
        expected[7] = records[7]["text"]  # its normaliser makes white space of the zero width
        assert "zero" in expected[7]
    assert [record["text"] for record in records] == expected


def test_no_answer_is_possible(word_tokenizer, tmp_path):
    task = make_task("squad", {"max_query_length": 8, "n_best": 2})
    examples = task.read(write(tmp_path, article(("w1 w2", ("a", "w3 w4 w5", ["w1"])))), True)
    arrays = task.features(examples, word_tokenizer, 20)
    (record,) = task.predictions(examples, arrays, pointing_at(arrays, ("example_index",) * 2))
    assert record["nbest"] == [
        {"text": "", "probability": 1.0, "start_logit": 0.0, "end_logit": 0.0}
    ]
    assert task.scores(examples, [record]) == {"exact_match": 0.0, "f1": 0.0}


def test_padding_is_no_place_of_an_answer(questions, word_tokenizer):
    """Whose numbers are 0 here, all those of the text are below, and rows are cut or not."""
    task = make_task("squad", {"n_best": 3})
    arrays = task.features(questions, word_tokenizer, 384)
    mask = arrays["attention_mask"]
    longest, rows = int(mask.sum(axis=1).max()), np.arange(len(mask))
    for length in (longest, 384):
        outputs = {
            name: join_outputs("span", [(rows, (mask * (logits - 20))[:, :length])], mask)
            for name, logits in pointing_at(arrays).items()
        }
        records = task.predictions(questions, arrays, outputs)
        assert task.scores(questions, records) == {"exact_match": 100.0, "f1": 100.0}


# Scores


def test_scores_equal_the_published_rules_on_hostile_predictions(caplog):
    truths = ["the The THE", "a", "Château d'Eau", "U.S.A.", "1,000", "x y x y", "an apple a day",
              "new\u00a0york", "«quoted»", "", "theatre", "a an the", "\u2019s"]  # fmt: skip
    rng = np.random.default_rng(5)
    pool = [*truths, "", " ", "The", ".", "usa", "x", "x x x", "apple day", "chateau deau", "1000",
            "theatre the", "New York", "co-op", "y x", "«quoted", "s"]  # fmt: skip
    qas = [
        {
            "id": str(i),
            "answers": [{"text": t, "answer_start": 0} for t in rng.choice(truths, 1 + i % 3)],
        }
        for i in range(300)
    ]
    dataset = [{"paragraphs": [{"qas": qas[:100]}, {"qas": qas[100:]}]}]
    predictions = {str(i): str(rng.choice(pool)) for i in range(300) if i % 7}
    predictions["of another file"] = "a"
    found = evaluate(dataset, predictions)
    assert found == pytest.approx(reference.evaluate(dataset, predictions), abs=1e-9)
    assert 5 < found["exact_match"] < found["f1"] + 20
    assert "43 of 300 questions have no prediction and count 0, the first is 0" in caplog.text
    assert evaluate(dataset, {}) == {"exact_match": 0.0, "f1": 0.0}
    one = [{"paragraphs": [{"qas": [{"id": "q", "answers": [{"text": "The cat"}]}]}]}]
    assert evaluate(one, {"q": "cat!"}) == {"exact_match": 100.0, "f1": 100.0}
    assert evaluate(one, {"q": "a black cat"})["f1"] == pytest.approx(200 / 3)


def test_right_answers_score_a_hundred(questions, word_tokenizer):
    task = make_task("squad")
    assert make_task(**json.loads(json.dumps(task.settings()))) == task
    arrays = task.features(questions, word_tokenizer, 384)
    records = task.predictions(questions, arrays, pointing_at(arrays))
    scores = task.scores(questions, records)
    assert scores == {"exact_match": 100.0, "f1": 100.0}
    assert task.main_metric in scores
    with pytest.raises(TaskError, match="24 predictions for 25 examples"):
        task.scores(questions, records[1:])


# Errors


def test_an_answer_that_does_not_stand_there_is_refused(tmp_path):
    wrong = article(("The cat sat.", ("q7", "Who?", ["cat"])))
    wrong["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] = 5
    message = (
        r"squad.json, question q7: found 'at ' at character 5 of its paragraph, expected the "
        r"answer 'cat'"
    )
    with pytest.raises(TaskError, match=message):
        make_task("squad").read(write(tmp_path, wrong), needs_labels=True)
    make_task("squad").read(write(tmp_path, wrong), needs_labels=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("{", "not JSON .*; expected a SQuAD v1.1 file"),
        ("[]", "has no list 'data'; expected the structure of SQuAD v1.1"),
        ('{"data": []}', "has no questions"),
        ('{"data": [{}]}', r"data\[0\]: has no list 'paragraphs'"),
        ('{"data": [{"paragraphs": [{"qas": []}]}]}', r"paragraphs\[0\]: has no text 'context'"),
        ('{"data": [{"paragraphs": [{"context": "x", "qas": [{}]}]}]}',
         r"data\[0\].paragraphs\[0\].qas\[0\]: has no text 'id'"),
        ('{"data": [{"paragraphs": [{"context": " ", "qas": [{"id": "q", "question": "?"}]}]}]}',
         "question q: its paragraph is empty"),
        ('{"data": [{"paragraphs": [{"context": "x", "qas": [{"id": "q", "question": "?", '
         '"is_impossible": true, "answers": []}]}]}]}', "question q: has no answer .SQuAD 2.0."),
        ('{"data": [{"paragraphs": [{"context": "x", "qas": [{"id": "q", "question": "?", '
         '"answers": [{"text": "x"}]}]}]}]}', "question q: answer .*expected a text and its"),
    ],
)  # fmt: skip
def test_broken_files_are_refused(content, message, tmp_path):
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(TaskError, match=f"broken.json.*{message}"):
        make_task("squad").read(str(path), needs_labels=True)


def test_other_errors(tmp_path, questions, word_tokenizer):
    path = tmp_path / "cut.json.gz"
    path.write_bytes(gzip.compress(b'{"data": ' + b" " * 999)[:-9])
    with pytest.raises(TaskError, match="broken or cut short"):
        make_task("squad").read(str(path), needs_labels=True)
    twice = article(("x", ("q", "?", ["x"]), ("q", "?", ["x"])))
    with pytest.raises(TaskError, match="question q: this id comes twice"):
        make_task("squad").read(write(tmp_path, twice), needs_labels=True)
    once = tmp_path / "once.json"
    once.write_text(json.dumps({"data": [article(("x", ("q", "?", ["x"])))]}))
    (tmp_path / "again.json").write_bytes(once.read_bytes())
    with pytest.raises(TaskError, match=r"again.json, question q: this id stands in .*once.json"):
        make_task("squad").read(f"{once},{tmp_path / 'again.json'}", needs_labels=True)
    with pytest.raises(TaskError, match="option 'n_best' of task squad is 0, expected at least 1"):
        make_task("squad", {"n_best": 0})
    with pytest.raises(TaskError, match=r"no option 'nbest'; did you mean 'n_best'\?"):
        make_task("squad", {"nbest": 1})
    task = make_task("squad")
    arrays = task.features(questions[:2], word_tokenizer, 300)
    with pytest.raises(TaskError, match=r"shape \(1, 300\), expected \(2, 300\)"):
        task.predictions(questions[:2], arrays, {"start_logits": np.zeros((1, 300))})


# Real data


def test_real_questions(shared_data):
    task = make_task("squad")
    examples = task.read(str(shared_data / "squad" / "dev-v1.1.json.gz"), needs_labels=True)
    assert len(examples) == 10_570
    examples = examples[:300]
    tokenizer = from_argument(str(shared_data / "vocab" / "bert-base-uncased-vocab.txt"))
    arrays = task.features(examples, tokenizer, 384)
    records = task.predictions(examples, arrays, pointing_at(arrays))
    wrong = [
        (question.answers[0].text, record["text"])
        for question, record in zip(examples, records, strict=True)
        if question.answers[0].text != record["text"]
    ]
    assert len(wrong) < 5
    # The reference finds the same pieces wherever it finds any that spell the answer.
    unspelled = 0
    for row, number in enumerate(arrays["example_index"]):
        question = examples[number]
        answer = question.answers[0]
        if "  " in question.context or "\n" in question.context or row != number:
            continue
        _, held = reference.positions(question.context, answer.start, answer.text, tokenizer.encode)
        first = len(tokenizer.encode(question.question)) + 2
        found = [int(arrays[f"{name}_positions"][row]) - first for name in ("start", "end")]
        if held is None:
            unspelled += 1
        elif arrays["start_positions"][row]:
            assert found == list(held)
    assert unspelled < 5


def test_real_questions_with_sentencepiece(shared_data):
    task = make_task("squad")
    examples = task.read(str(shared_data / "squad" / "dev-v1.1.json.gz"), needs_labels=True)[:60]
    tokenizer = from_argument(str(shared_data / "vocab" / "sentencepiece_test_model.model"))
    task = make_task("squad", {"max_answer_length": 200})
    records = task.predictions(
        examples, arrays := task.features(examples, tokenizer, 512), pointing_at(arrays)
    )
    same = [
        question.answers[0].text == record["text"]
        for question, record in zip(examples, records, strict=True)
    ]
    assert sum(same) >= 58


def test_rows_do_not_depend_on_what_else_is_asked(wordpiece, tmp_path):
    text = " ".join(TEXT[:40])
    paragraphs = [(text, ("a", "What is it?", [text[50:80]]), ("b", "Who is it now?", [text[:9]]))]
    task = make_task("squad", {"doc_stride": 40})
    examples = task.read(write(tmp_path, article(*paragraphs)), needs_labels=True)
    together = task.features(examples, wordpiece, 128)
    for number, example in enumerate(examples):
        alone = task.features([example], wordpiece, 128)
        for name, array in alone.items():
            if name != "example_index":
                rows = together[name][together["example_index"] == number]
                np.testing.assert_array_equal(array, rows)

"""The reader: rows are a pure function of (seed, stream, position), frozen by a golden hash."""

import hashlib
import subprocess
import sys
import time

import numpy as np
import pytest
from folders import HELPERS
from stream_store import make_reader, shared_store

from bertjax.data.stream.reader import RowReader, evaluation_batches
from bertjax.data.stream.rows import RowSpec
from bertjax.data.tokenizers.tokenizer import WordPieceTokenizer


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        assert np.array_equal(one[name], other[name]), name


SPECS = [
    {"max_length": 48, "max_predictions": 8},
    {"max_length": 48, "max_predictions": 8, "masking": "whole_word"},
    {"max_length": 48, "max_predictions": 8, "masking": "span"},
    {"max_length": 48, "max_predictions": 8, "next_sentence": False},
]


# What the streams of SPECS hold. A changed hash means that every run resumed or repeated from here
# on reads other rows than before: only on purpose, and with a line in the CHANGELOG.
GOLDEN = [
    "b12925a52c8f8fe56318474e0a77fe36d8a61ae1f8c2d0e80d4b33a1c67f91aa",
    "97c0ebbbc657a40ab7bf9bce7c8118bb23199078bf87f299c5eaff730dd713b5",
    "e45b5a3480b92e77dc698851f2a859dd31cb6e1b0d76287ddfdb6ac6fe9ee816",
    "50f27022b674a2918a21da05ccf5dc78cc14fb65c4947d4b70c6406cef2e3683",
]


@pytest.mark.parametrize(("spec", "expected"), list(zip(SPECS, GOLDEN, strict=True)))
def test_rows_never_change(spec, expected):
    reader = make_reader(**spec)
    positions = np.concatenate([np.arange(150), 10**9 + np.arange(150)])
    digest = hashlib.sha256()
    for name, array in sorted(reader.rows(positions).items()):
        digest.update(name.encode() + array.astype(array.dtype.newbyteorder("<")).tobytes())
    assert digest.hexdigest() == expected


def test_shapes_and_types():
    batch = make_reader(**SPECS[0]).rows(np.arange(5))
    assert {name: (array.dtype.name, array.shape) for name, array in batch.items()} == {
        "input_ids": ("int32", (5, 48)),
        "token_type_ids": ("int32", (5, 48)),
        "attention_mask": ("int32", (5, 48)),
        "masked_positions": ("int32", (5, 8)),
        "masked_ids": ("int32", (5, 8)),
        "masked_weights": ("float32", (5, 8)),
        "next_sentence_labels": ("int32", (5,)),
        "row_weights": ("float32", (5,)),
        "row_ids": ("int64", (5,)),
    }


@pytest.mark.parametrize("spec", SPECS)
def test_rows_hold_the_text_of_their_anchor(spec):
    """[CLS] A [SEP] B [SEP], A from the row's own sentences, B right after it unless random."""
    reader = make_reader(**spec)
    split = reader.split
    tokens = np.concatenate(split.token_shards).astype(np.int64)
    offsets = split.sentence_offsets.astype(np.int64)
    rows = reader.rows(7 * reader.num_rows + np.arange(2000))
    text_of = tokens.tobytes()
    for i in range(2000):
        ids = rows["input_ids"][i].astype(np.int64)
        used = rows["masked_weights"][i] > 0
        ids[rows["masked_positions"][i][used]] = rows["masked_ids"][i][used]
        length = rows["attention_mask"][i].sum()
        types = rows["token_type_ids"][i]
        assert rows["attention_mask"][i].tolist() == [1] * length + [0] * (48 - length)
        assert not ids[length:].any()
        seps = np.flatnonzero(ids == 3)
        assert seps[-1] == length - 1
        assert ids[0] == 2
        begin, end = offsets[reader.starts[rows["row_ids"][i] + np.arange(2)]]
        own = tokens[begin:end].tobytes()
        a, b = ids[1 : seps[0]], ids[seps[0] + 1 : length - 1]
        assert len(a) > 0
        assert a.tobytes() in own
        if reader.spec.next_sentence:
            assert len(seps) == 2
            assert types.tolist() == [0] * (seps[0] + 1) + [1] * (len(b) + 1) + [0] * (48 - length)
            assert len(b) > 0
            if rows["next_sentence_labels"][i] == 0:
                assert b.tobytes() in own
            else:
                assert b.tobytes() in text_of
                if len(b) > 3:
                    assert b.tobytes() not in own
        else:
            assert len(seps) == 1
            assert not types.any()


@pytest.mark.parametrize("spec", SPECS)
def test_a_row_is_the_same_in_any_batch(spec):
    reader = make_reader(**spec)
    positions = 10**7 + np.arange(96)
    together = reader.rows(positions)
    alone = [reader.rows(positions[i : i + 1]) for i in range(96)]
    assert_same(together, {name: np.concatenate([r[name] for r in alone]) for name in together})
    shuffled = np.random.default_rng(0).permutation(96)
    assert_same(reader.rows(positions[shuffled]), {n: a[shuffled] for n, a in together.items()})
    assert len(reader.rows(positions[:0])["input_ids"]) == 0


def test_every_row_comes_once_an_epoch():
    reader = make_reader(**SPECS[0])
    n = reader.num_rows
    epochs = [reader.rows(epoch * n + np.arange(n)) for epoch in (0, 1, 10**6)]
    for rows in epochs:
        assert np.array_equal(np.sort(rows["row_ids"]), np.arange(n))
    orders = [rows["row_ids"] for rows in epochs]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (orders[one] == orders[other]).sum() < 10  # 1 on average
    first, second = ({name: a[np.argsort(r["row_ids"])] for name, a in r.items()}
                     for r in epochs[:2])  # fmt: skip
    # The same rows with other masks, other pairs and other lengths.
    differ = (first["masked_positions"] != second["masked_positions"]).any(axis=1)
    assert differ.mean() > 0.98
    labels = (first["next_sentence_labels"] != second["next_sentence_labels"]).mean()
    assert 0.2 < labels < 0.5
    assert (first["attention_mask"] != second["attention_mask"]).any()


def test_an_epoch_may_end_within_a_batch():
    reader = make_reader(**SPECS[0])
    across = reader.rows(np.arange(reader.num_rows - 20, reader.num_rows + 20))
    before = reader.rows(np.arange(reader.num_rows - 20, reader.num_rows))
    assert np.array_equal(across["row_ids"][:20], before["row_ids"])


def test_seed_and_stream_change_everything():
    base = make_reader(**SPECS[0]).rows(np.arange(300))
    for other in (make_reader(**SPECS[0], seed=4), make_reader(**SPECS[0], stream_id=1)):
        rows = other.rows(np.arange(300))
        assert (rows["row_ids"] != base["row_ids"]).mean() > 0.95
        assert (rows["masked_positions"] != base["masked_positions"]).any(axis=1).mean() > 0.95


def test_far_positions_are_as_quick_as_near_ones():
    make_reader(**SPECS[0])  # the index exists
    begin = time.perf_counter()
    batch = make_reader(**SPECS[0]).rows(10**7 + np.arange(256))
    assert time.perf_counter() - begin < 1
    assert len(batch["input_ids"]) == 256


def test_reader_alone_needs_no_tensorflow(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from stream_store import make_reader\n"
        "from bertjax.data.store.store import open_store\n"
        "import numpy as np\n"
        "rows = make_reader(open_store(sys.argv[2]), max_length=48, max_predictions=8).rows(\n"
        "    np.arange(10))\n"
        "assert not {'tensorflow', 'jax'} & set(sys.modules)\n"
        "print(rows['row_ids'].tolist())"
    )
    folder = str(shared_store().path)
    result = subprocess.run(
        [sys.executable, "-c", code, HELPERS, folder], capture_output=True, text=True, check=True
    )
    expected = make_reader(**SPECS[0]).rows(np.arange(10))["row_ids"].tolist()
    assert result.stdout.strip() == str(expected), "another process reads the same"


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="positions start at 0, found -3"):
        make_reader(**SPECS[0]).rows(np.array([5, -3]))
    small = WordPieceTokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], lower_case=True)
    with pytest.raises(ValueError, match=r"vocabulary of 1000, but the tokenizer has 5 entries"):
        RowReader(shared_store().train, small, RowSpec(), seed=0, stream_id=0)


@pytest.mark.parametrize("max_rows", [0, 50, 64, 65, 10**9])
@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_rows_come_once(max_rows, processes):
    reader = make_reader(split="heldout", **SPECS[0])
    count = min(max_rows, reader.num_rows) if max_rows else reader.num_rows
    assert reader.num_rows > 65
    shares = [
        list(
            evaluation_batches(
                reader,
                global_batch_size=32,
                offsets=np.split(np.arange(32), processes)[process],
                max_rows=max_rows,
            )
        )
        for process in range(processes)
    ]
    assert {len(share) for share in shares} == {-(-count // 32)}
    batches = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*shares, strict=True)
    ]
    rows = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    real = rows["row_weights"] == 1
    assert real.tolist() == [True] * count + [False] * (len(real) - count)
    assert_same({name: array[real] for name, array in rows.items()}, reader.rows(np.arange(count)))
    assert not rows["row_weights"][~real].any()
    assert not rows["masked_weights"][~real].any()
    assert (rows["row_ids"][~real] == -1).all()
    assert (rows["attention_mask"].sum(axis=1) > 0).all()

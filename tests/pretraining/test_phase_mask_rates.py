"""A phase that masks another share of the tokens than the data section says."""

import numpy as np
import pytest
from micro_runs import micro

from bertjax.config import Phase
from bertjax.config.checks import validate
from bertjax.pretraining.stores import open_data
from bertjax.testing import make_store
from bertjax.training.workdir import open_workdir

RATE = 0.4


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("other") / "store", num_documents=50, seed=3).path


def rows(config, tmp_path, phase, count=300):
    validate(config)
    data = open_data(config, open_workdir(str(tmp_path)))
    return data.training_rows(config, phase).rows(np.arange(count))


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def without_masks(batch):
    """The rows before masking: the ids with the masked ones put back."""
    ids = batch["input_ids"].copy()
    used = batch["masked_weights"] > 0
    places = np.nonzero(used)
    ids[places[0], batch["masked_positions"][used]] = batch["masked_ids"][used]
    return ids


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("masking", ["token", "whole_word", "span"])
def test_each_phase_masks_its_own_share_of_the_same_rows(store, tmp_path, masking, depth):
    phases = (Phase(5), Phase(5, mask_rate=RATE))
    config = micro(store, phases=phases, data__masking=masking, data__packing_depth=depth)
    plain = micro(store, phases=(Phase(5), Phase(5)), data__masking=masking)
    plain.data.packing_depth = depth
    assert_same(rows(config, tmp_path, 0), rows(plain, tmp_path, 0))
    found, before = rows(config, tmp_path, 1), rows(plain, tmp_path, 1)
    np.testing.assert_array_equal(without_masks(found), without_masks(before))
    real = "attention_mask" if depth == 1 else "segment_ids"
    shares = [batch["masked_weights"].sum() / (batch[real] > 0).sum() for batch in (before, found)]
    np.testing.assert_allclose(shares, [0.15, RATE], atol=0.01)
    plain.data.mask_rate = RATE  # for all phases: the second is the same
    assert_same(found, rows(plain, tmp_path, 1))


def test_a_number_of_predictions_for_the_rate_of_the_data_cuts_no_other_rate(store, tmp_path):
    config = micro(store, phases=(Phase(5, mask_rate=RATE),), data__max_predictions=8)
    uncut = micro(store, phases=(Phase(5, mask_rate=RATE),))
    assert_same(rows(config, tmp_path, 0), rows(uncut, tmp_path, 0))


def test_rows_of_several_stores_have_the_rate_of_the_phase(store, other, tmp_path):
    mixture = {"data__stores": f"{store}:0.7,{other}:0.3"}
    config = micro("", phases=(Phase(5, mask_rate=RATE),), **mixture)
    everywhere = micro("", phases=(Phase(5),), data__mask_rate=RATE, **mixture)
    assert_same(rows(config, tmp_path, 0), rows(everywhere, tmp_path, 0))


def test_held_out_rows_do_not_follow_the_phase(store, tmp_path):
    config = micro(store, phases=(Phase(5, mask_rate=RATE),))
    data = open_data(config, open_workdir(str(tmp_path)))
    plain = micro(store, phases=(Phase(5),))
    positions = np.arange(20)
    assert_same(
        data.evaluation_rows(config, 32).rows(positions),
        data.evaluation_rows(plain, 32).rows(positions),
    )

"""Checkpoints of google-research/bert, written by TensorFlow in a process of its own."""

import subprocess
import sys

import pytest
from folders import HELPERS

import bertjax
from bertjax.weights.formats import detect_format
from bertjax.weights.weights import WeightsError


@pytest.mark.slow
def test_checkpoints_of_the_reference_are_read(tmp_path):
    script = HELPERS / "tf1_checkpoints.py"
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[:-1] == [
        "same pretraining",
        "same classification",
        "same span",
        "refused",
    ]
    assert detect_format(tmp_path / "span") == "tf1"


def test_several_checkpoints_in_a_folder_are_not_guessed_among(tmp_path):
    (tmp_path / "bert_config.json").write_text("{}")
    for name in ("model.ckpt-10", "model.ckpt-20"):
        (tmp_path / f"{name}.index").touch()
    with pytest.raises(WeightsError, match=r"several checkpoints \(model\.ckpt-10, model"):
        bertjax.load(tmp_path)

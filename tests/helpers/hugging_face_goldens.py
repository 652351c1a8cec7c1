"""The folders and outputs that goldens/make_hugging_face_goldens.py wrote."""

import functools
import json

import numpy as np
from folders import GOLDENS

FOLDER = GOLDENS / "hugging_face"
MODELS = (
    "pretraining",
    "masked_lm",
    "encoder",
    "sharded",
    "classification",
    "regression",
    "span",
    "tagging",
    "causal",
)


@functools.cache
def texts():
    """{"small": [...], "real": [...], "masked": ...}; pairs are tuples."""
    found = json.loads(FOLDER.with_name("hugging_face_texts.json").read_text("utf-8"))
    long = found["real_long"]
    found["real"].append(long["text"] * long["times"])
    for name in ("small", "real"):
        found[name] = [tuple(text) if isinstance(text, list) else text for text in found[name]]
    return found


@functools.cache
def outputs(name):
    """{field: array} of one model."""
    with np.load(FOLDER / "outputs.npz") as arrays:
        return {
            key.split("/")[1]: arrays[key] for key in arrays.files if key.startswith(f"{name}/")
        }

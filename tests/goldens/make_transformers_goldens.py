"""Writes transformers_pretraining.npz: loss and gradients of transformers' BertForPreTraining.

And transformers_causal.npz, those of BertLMHeadModel with is_decoder.

    python tests/goldens/make_transformers_goldens.py

in an environment with torch and transformers (`pip install "bertjax[peer]"`). Everything is
computed in float64 from weights that float32 holds exactly, so that one file serves tests in both.
tests/models/test_model_live.py runs the same functions on another model.
"""

from pathlib import Path

import numpy as np
import torch
import transformers

OUTPUT = Path(__file__).parent
KINDS = {
    "pretraining": (transformers.BertForPreTraining, {}),
    "causal": (transformers.BertLMHeadModel, {"is_decoder": True}),
}
SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "intermediate_size": 48,
    "max_positions": 32,
}


def make_batch(sizes, *, rows, length, max_predictions, seed):
    """A batch as the stream makes it: two segments, padding, unused prediction slots."""
    rng = np.random.default_rng(seed)
    shape = (rows, length)
    lengths = rng.integers(length // 2, length, rows)
    lengths[0] = length  # one row without padding
    columns = np.arange(length)
    attention_mask = columns < lengths[:, None]
    second = rng.integers(3, lengths - 3)
    token_type_ids = (columns >= second[:, None]) & attention_mask
    batch = {
        "input_ids": np.where(attention_mask, rng.integers(1, sizes["vocab_size"], shape), 0),
        "token_type_ids": token_type_ids,
        "attention_mask": attention_mask,
        "masked_positions": np.zeros((rows, max_predictions)),
        "masked_ids": np.zeros((rows, max_predictions)),
        "next_sentence_labels": np.arange(rows) % 2,
    }
    batch = {name: array.astype(np.int32) for name, array in batch.items()}
    batch["masked_weights"] = np.zeros((rows, max_predictions), np.float32)
    batch["row_weights"] = np.ones(rows, np.float32)
    for row in range(rows):
        count = rng.integers(1, max_predictions + 1) if row else max_predictions
        chosen = np.sort(rng.choice(np.arange(1, lengths[row]), count, replace=False))
        batch["masked_positions"][row, :count] = chosen
        batch["masked_ids"][row, :count] = rng.integers(1, sizes["vocab_size"], count)
        batch["masked_weights"][row, :count] = 1
    return batch


def make_model(sizes, *, seed, kind="pretraining"):
    """A model with random weights, biases and LayerNorms too, so that none can hide an error."""
    model_class, settings = KINDS[kind]
    config = transformers.BertConfig(
        **settings,
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["hidden_size"],
        num_hidden_layers=sizes["num_layers"],
        num_attention_heads=sizes["num_heads"],
        intermediate_size=sizes["intermediate_size"],
        max_position_embeddings=sizes["max_positions"],
        hidden_act="gelu",  # the erf form
        layer_norm_eps=1e-12,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )
    model = model_class(config).double()
    rng = np.random.default_rng(seed)
    scale = 0.8 / sizes["hidden_size"] ** 0.5  # activations near 1 at any width
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = rng.normal(0.0, scale, tuple(parameter.shape)).astype(np.float32)
            if name.endswith("LayerNorm.weight"):
                values += np.float32(1)
            parameter.copy_(torch.from_numpy(values.astype(np.float64)))
    return model


def loss_and_gradients(model, batch):
    """The reference's loss on transformers' logits, and its gradient for each parameter.

    Transformers divides the MLM loss by the number of labels, the reference by that number + 1e-5;
    so the loss is formed here, and theirs is checked to be the same but for that.
    """
    tensors = {name: torch.from_numpy(array).long() for name, array in batch.items()}
    rows, length = batch["input_ids"].shape
    labels = torch.full((rows, length), -100)
    for row, slot in zip(*np.nonzero(batch["masked_weights"]), strict=True):
        position = tensors["masked_positions"][row, slot]
        labels[row, position] = tensors["masked_ids"][row, slot]
    model.zero_grad()
    outputs = model(
        input_ids=tensors["input_ids"],
        token_type_ids=tensors["token_type_ids"],
        attention_mask=tensors["attention_mask"],
        labels=labels,
        next_sentence_label=tensors["next_sentence_labels"],
    )
    mlm_sum = torch.nn.functional.cross_entropy(
        outputs.prediction_logits.flatten(0, 1), labels.flatten(), reduction="sum"
    )
    nsp_loss = torch.nn.functional.cross_entropy(
        outputs.seq_relationship_logits, tensors["next_sentence_labels"]
    )
    weight = float(batch["masked_weights"].sum())
    torch.testing.assert_close(outputs.loss, mlm_sum / weight + nsp_loss, rtol=1e-14, atol=0)
    mlm_loss = mlm_sum / (weight + 1e-5)
    loss = mlm_loss + nsp_loss
    loss.backward()
    losses = {
        "loss": loss.item(),
        "mlm_loss": mlm_loss.item(),
        "nsp_loss": nsp_loss.item(),
    }
    return losses, {name: p.grad.numpy() for name, p in model.named_parameters()}


def causal_loss_and_gradients(model, batch):
    """The loss on transformers' logits, these logits, and the gradient of each parameter.

    Transformers rounds the logits to float32 first; so the loss is formed here, and theirs is
    checked to be the same but for that.
    """
    tensors = {name: torch.from_numpy(array).long() for name, array in batch.items()}
    mask = tensors["attention_mask"]
    model.zero_grad()
    labels = torch.where(mask > 0, tensors["input_ids"], -100)
    outputs = model(
        input_ids=tensors["input_ids"],
        token_type_ids=tensors["token_type_ids"],
        attention_mask=mask,
        labels=labels,
    )
    loss = torch.nn.functional.cross_entropy(
        outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    )
    torch.testing.assert_close(outputs.loss.double(), loss, rtol=1e-6, atol=0)
    loss.backward()
    losses = {"loss": loss.item(), "logits": outputs.logits.detach().numpy()}
    return losses, {name: p.grad.numpy() for name, p in model.named_parameters()}


def weights(model):
    """The weights by name, float32; they were drawn in it."""
    return {name: p.detach().numpy().astype(np.float32) for name, p in model.named_parameters()}


def main():
    """Writes the files: size/NAME, batch/FIELD, weight/NAME, gradient/NAME, loss/NAME."""
    batch = make_batch(SIZES, rows=4, length=24, max_predictions=4, seed=1)
    for kind, compute in (
        ("pretraining", loss_and_gradients),
        ("causal", causal_loss_and_gradients),
    ):
        model = make_model(SIZES, seed=2, kind=kind)
        losses, gradients = compute(model, batch)
        groups = {
            "size": SIZES,
            "batch": batch,
            "weight": weights(model),
            "gradient": gradients,
            "loss": losses,
            "version": {"torch": torch.__version__, "transformers": transformers.__version__},
        }
        arrays = {
            f"{group}/{name}": np.asarray(array)
            for group, members in groups.items()
            for name, array in members.items()
        }
        path = OUTPUT / f"transformers_{kind}.npz"
        np.savez_compressed(path, **arrays)
        print(f"{path}: {len(arrays)} arrays, {path.stat().st_size:,} bytes, {losses['loss']}")


if __name__ == "__main__":
    main()

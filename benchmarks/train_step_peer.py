"""What users of PyTorch train BERT with: transformers' BertForPreTraining, in its best mode.

SDPA attention, torch.compile, fused AdamW and, on a GPU, bfloat16 autocast and TF32 for what is
left. Its MLM head computes the logits of all positions, not only of the masked ones.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping
from importlib.metadata import version

import numpy as np

os.environ.setdefault("USE_TF", "0")  # transformers imports TensorFlow where it finds it
import torch
import transformers

from bertjax.config import ModelConfig

WARM_UP_STEPS = 3


class Transformers:
    """One model, optimiser and batch; `run` takes steps."""

    def __init__(self, model: ModelConfig, batch: Mapping[str, np.ndarray], *, compiled: bool):
        """Makes the model, compiles it and takes the first steps.

        Args:
          model: sizes and rates of dropout.
          batch: arrays of `pretraining_batch`.
          compiled: torch.compile; otherwise eager.
        """
        started = time.monotonic()
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        on_gpu = self._device.type == "cuda"
        if on_gpu:
            torch.set_float32_matmul_precision("high")
            torch.cuda.reset_peak_memory_stats()
        self.settings = {
            "package": f"transformers {version('transformers')}, torch {torch.__version__}",
            "attention": "sdpa",
            "torch.compile": compiled,
            "dtype": "bfloat16 autocast" if on_gpu else "float32",
            "optimizer": "torch.optim.AdamW(fused=True), clip_grad_norm_",
            "threads": torch.get_num_threads(),
        }
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=model.vocab_size,
            hidden_size=model.hidden_size,
            num_hidden_layers=model.num_layers,
            num_attention_heads=model.num_heads,
            intermediate_size=model.intermediate_size,
            max_position_embeddings=model.max_positions,
            hidden_act={"tanh": "gelu_new", "erf": "gelu"}[model.gelu],
            hidden_dropout_prob=model.dropout_rate,
            attention_probs_dropout_prob=model.attention_dropout_rate,
            attn_implementation="sdpa",
        )
        self._model = transformers.BertForPreTraining(config).to(self._device).train()
        self._forward = torch.compile(self._model) if compiled else self._model
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(), lr=1e-4, weight_decay=0.01, fused=True
        )
        self._inputs = {
            name: torch.from_numpy(array).long().to(self._device)
            for name, array in _inputs(batch).items()
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.run(WARM_UP_STEPS)
        self.compile_seconds = time.monotonic() - started

    def run(self, num_steps: int) -> float:
        """Takes steps and waits for the last; returns its loss."""
        for _ in range(num_steps):
            with torch.autocast("cuda", torch.bfloat16, enabled=self._device.type == "cuda"):
                loss = self._forward(**self._inputs).loss
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
            self._optimizer.step()
        return loss.item()  # waits for the device

    def peak_bytes(self) -> int | None:
        """Of the GPU's memory; None on a CPU."""
        return torch.cuda.max_memory_allocated() if self._device.type == "cuda" else None


def _inputs(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same batch as transformers takes it: a label at each masked position, else -100."""
    labels = np.full(batch["input_ids"].shape, -100)
    rows, slots = np.nonzero(batch["masked_weights"])
    labels[rows, batch["masked_positions"][rows, slots]] = batch["masked_ids"][rows, slots]
    return {
        "input_ids": batch["input_ids"],
        "token_type_ids": batch["token_type_ids"],
        "attention_mask": batch["attention_mask"],
        "labels": labels,
        "next_sentence_label": batch["next_sentence_labels"],
    }

"""What users of PyTorch train BERT with: transformers' BertForPreTraining, in its best mode.

SDPA attention, torch.compile, fused AdamW and, on a GPU, bfloat16 autocast and TF32 for what is
left. transformers' own forward pass computes the MLM logits of all positions and ignores most. The
second contender computes them at the masked positions only, as bertjax does: the same modules and
parameters, the same losses and gradients (tests/benchmarks/test_train_step_peer.py), fewer
operations.
"""

from __future__ import annotations

import dataclasses
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version

import numpy as np

os.environ.setdefault("USE_TF", "0")  # transformers imports TensorFlow where it finds it
import torch
import transformers
from transformers.models.bert.modeling_bert import BertForPreTrainingOutput

from bertjax.config import ModelConfig

WARM_UP_STEPS = 3


@dataclasses.dataclass
class Training:
    """A model and its optimiser, on the device that steps are taken on."""

    model: transformers.BertForPreTraining
    optimizer: torch.optim.Optimizer


class Transformers:
    """One way to take steps; `run` takes them."""

    def __init__(
        self,
        training: Training,
        batch: Mapping[str, np.ndarray],
        *,
        logits: str,
        dtype: str,
        compiled: bool,
    ):
        """Compiles and takes the first steps.

        Args:
          training: may be shared: one contender's step leaves nothing to another's but the
            parameters, whose values do not change how long a step takes.
          batch: arrays of `abstract_batch`.
          logits: of the MLM head: of "all" positions or of the "masked" ones.
          dtype: "float32", or "bfloat16" for autocast; a GPU has the latter always.
          compiled: torch.compile; otherwise eager.
        """
        started = time.monotonic()
        self._training = training
        device = training.model.device
        self._on_gpu = device.type == "cuda"
        self._peak_bytes = 0
        self._autocast = self._on_gpu or dtype == "bfloat16"
        self.settings = {
            "package": f"transformers {version('transformers')}, torch {torch.__version__}",
            "attention": "sdpa",
            "mlm_logits": logits,
            "torch.compile": compiled,
            "dtype": "bfloat16 autocast" if self._autocast else "float32",
            "optimizer": "torch.optim.AdamW(fused=True), clip_grad_norm_",
            "threads": torch.get_num_threads(),
        }
        make_module, make_inputs = WAYS[logits]
        module = make_module(training.model)
        self._forward = torch.compile(module) if compiled else module
        self._inputs = tensors(make_inputs(batch), device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.run(WARM_UP_STEPS)
        self.compile_seconds = time.monotonic() - started

    def run(self, num_steps: int) -> float:
        """Takes steps and waits for the last; returns its loss."""
        model, optimizer = self._training.model, self._training.optimizer
        if self._on_gpu:  # the peak is that of this contender's steps
            torch.cuda.reset_peak_memory_stats()
        for _ in range(num_steps):
            with torch.autocast(model.device.type, torch.bfloat16, enabled=self._autocast):
                loss = self._forward(**self._inputs).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        value = loss.item()  # waits for the device
        if self._on_gpu:
            self._peak_bytes = max(self._peak_bytes, torch.cuda.max_memory_allocated())
        return value

    def peak_bytes(self) -> int | None:
        """Of the GPU's memory; None on a CPU."""
        return self._peak_bytes if self._on_gpu else None


def make_contenders(
    model: ModelConfig,
    batch: Mapping[str, np.ndarray],
    logits: Sequence[str],
    dtypes: Sequence[str] = ("float32",),
    *,
    compiled: bool,
) -> dict[str, Transformers]:
    """A contender for each of `logits` and `dtypes`, on one model and optimiser.

    Their names are "transformers, LOGITS", and "transformers, LOGITS, bfloat16" on CPUs.

    One model, because a GPU would otherwise have to hold the parameters and moments of each. What
    the first compiles may start the next faster, from torch's cache.
    """
    training = make_training(model)
    return {
        f"transformers, {which}" + (f", {dtype}" if dtype != "float32" else ""): Transformers(
            training, batch, logits=which, dtype=dtype, compiled=compiled
        )
        for dtype in dtypes
        for which in logits
    }


def make_training(model: ModelConfig) -> Training:
    """Transformers' model of these sizes and rates of dropout, and AdamW."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
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
    theirs = transformers.BertForPreTraining(config).to(device).train()
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    return Training(theirs, optimizer)


class MaskedPositions(torch.nn.Module):
    """The loss of a BertForPreTraining, from the logits of the masked positions alone.

    Encoder, pooler and heads are the given model's; only its `forward` is not called.
    """

    def __init__(self, model: transformers.BertForPreTraining):
        super().__init__()
        self.model = model

    def forward(
        self,
        masked_positions: torch.Tensor,
        masked_ids: torch.Tensor,
        next_sentence_label: torch.Tensor,
        **inputs: torch.Tensor,
    ) -> BertForPreTrainingOutput:
        """The output of a training step: `loss` is all that it reads.

        Args:
          masked_positions: [n], into the tokens of all rows one after the other.
          masked_ids: [n].
          next_sentence_label: [b].
          inputs: of the encoder.
        """
        hidden, pooled = self.model.bert(**inputs)[:2]
        masked = hidden.flatten(0, 1).index_select(0, masked_positions)
        mlm_logits, nsp_logits = self.model.cls(masked, pooled)
        cross_entropy = torch.nn.functional.cross_entropy
        loss = cross_entropy(mlm_logits, masked_ids) + cross_entropy(
            nsp_logits, next_sentence_label
        )
        return BertForPreTrainingOutput(loss=loss)


def inputs_of_all(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch as transformers takes it: a label at each masked position, else -100."""
    labels = np.full(batch["input_ids"].shape, -100)
    rows, slots = np.nonzero(batch["masked_weights"])
    labels[rows, batch["masked_positions"][rows, slots]] = batch["masked_ids"][rows, slots]
    return {
        **_encoder_inputs(batch),
        "labels": labels,
        "next_sentence_label": batch["next_sentence_labels"],
    }


def inputs_of_masked(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch as `MaskedPositions` takes it, without the slots that hold no prediction."""
    rows, slots = np.nonzero(batch["masked_weights"])
    length = batch["input_ids"].shape[1]
    return {
        **_encoder_inputs(batch),
        "masked_positions": rows * length + batch["masked_positions"][rows, slots],
        "masked_ids": batch["masked_ids"][rows, slots],
        "next_sentence_label": batch["next_sentence_labels"],
    }


# By which MLM logits are computed: the module to call, of a model, and its inputs, of a batch.
WAYS: dict[str, tuple[Callable[..., torch.nn.Module], Callable[..., dict[str, np.ndarray]]]] = {
    "all": (lambda model: model, inputs_of_all),
    "masked": (MaskedPositions, inputs_of_masked),
}


def tensors(arrays: Mapping[str, np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    """The arrays as integers on the device."""
    return {name: torch.from_numpy(array).long().to(device) for name, array in arrays.items()}


def _encoder_inputs(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: batch[name] for name in ("input_ids", "token_type_ids", "attention_mask")}

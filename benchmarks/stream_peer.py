"""What users of PyTorch feed BERT with: transformers' collator under a torch DataLoader.

`benchmarks.stream --peer=transformers` runs it as a process of its own, on rows that the stream has
made: neither tokenising nor choosing pairs is in what it measures, only collating and masking.
"""

from __future__ import annotations

import os
import resource
import time
from typing import Any

import numpy as np

os.environ.setdefault("USE_TF", "0")  # transformers imports TensorFlow where it finds it
import torch
from torch.utils.data import DataLoader
from transformers import BertTokenizerFast, DataCollatorForLanguageModeling

BATCH_SIZE = 256
# What the collator's documentation recommends, its NumPy variant, and the bare ids that it can
# stack without padding them (then there are no token types and no next-sentence labels).
FORMS = (("features", "pt", 0), ("features", "np", 0), ("features", "pt", 2), ("ids", "pt", 0))


def measure_forms(rows: str, vocabulary: str, seconds: float) -> list[dict[str, Any]]:
    """Rates of each form.

    Args:
      rows: .npz of the stream's fields, without masks.
      vocabulary: vocab.txt of the store's tokenizer.
      seconds: of each measurement.
    """
    torch.set_num_threads(1)  # rows a core; intra-op threads only add overhead at this size
    tokenizer = BertTokenizerFast(vocab_file=vocabulary)
    fields = dict(np.load(rows))
    features = make_features(fields)
    ids = [torch.from_numpy(row) for row in fields["input_ids"].astype(np.int64)]
    runs = []
    for form, tensors, workers in FORMS:
        loader: DataLoader[Any] = DataLoader(
            features if form == "features" else ids,
            batch_size=BATCH_SIZE,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=DataCollatorForLanguageModeling(tokenizer, return_tensors=tensors),
        )
        names = {"examples": form, "return_tensors": tensors, "num_workers": workers}
        runs.append({**names, **measure(loader, seconds)})
    return runs


def make_features(fields: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Rows as a fast tokenizer returns them, with the mask of special tokens, not yet padded."""
    special = np.isin(fields["input_ids"], fields["special_ids"]).astype(np.int64)
    lengths = fields["attention_mask"].sum(axis=1)
    return [
        {
            "input_ids": fields["input_ids"][i, :n].tolist(),
            "token_type_ids": fields["token_type_ids"][i, :n].tolist(),
            "attention_mask": [1] * int(n),
            "special_tokens_mask": special[i, :n].tolist(),
            "next_sentence_label": int(fields["next_sentence_labels"][i]),
        }
        for i, n in enumerate(lengths)
    ]


def measure(loader: DataLoader[Any], seconds: float) -> dict[str, float]:
    """Rows that reach the consumer, by processor time of all processes and by the clock."""
    cpu, clock, rows = cpu_seconds(), time.perf_counter(), 0
    while (elapsed := time.perf_counter() - clock) < seconds:
        batches = iter(loader)
        for batch in batches:
            rows += len(batch["input_ids"])
            if time.perf_counter() - clock > seconds:
                break
    if loader.num_workers:  # their processor time counts when they have ended
        batches._shutdown_workers()
    return {
        "rows_per_cpu_second": round(rows / (cpu_seconds() - cpu), -1),
        "rows_per_second": round(rows / elapsed, -1),
    }


def cpu_seconds() -> float:
    """Of this process and of the children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)

"""Continued pre-training of a 6-layer encoder of width 384 (MiniLM's) on novels, MLM only.

Its vocabulary is BERT's uncased one; it has no MLM head, which is drawn.
"""

from pathlib import Path

from bertjax import Config, load_recipe
from bertjax.config import Phase


def get_config() -> Config:
    return load_recipe(
        str(Path(__file__).with_name("packing.py")),
        {
            "model.next_sentence": False,
            "phases": (Phase(num_steps=1_000, max_length=64, global_batch_size=32),),
            "optimizer.learning_rate": 3e-4,
            "optimizer.warmup_steps": 100,
            "checkpoint.every_steps": 250,
            "eval.every_steps": 100,
            "eval.max_rows": 4_096,
        },
    )

"""6 layers, 384 wide, on the texts of novels_wiki.py: minutes of one GPU.

Rows of 32 tokens first, 128 then: docs/results/tiny.md says why.
"""

from pathlib import Path

from bertjax import Config, load_recipe
from bertjax.config import Phase


def get_config() -> Config:
    return load_recipe(
        str(Path(__file__).with_name("novels_wiki.py")),
        {
            "num_microbatches": 0,
            "model.hidden_size": 384,
            "model.num_layers": 6,
            "model.num_heads": 6,
            "model.intermediate_size": 1_536,
            "model.initializer_range": 0.04,
            "phases": (
                Phase(num_steps=2_000, max_length=32, global_batch_size=1_024),
                Phase(num_steps=5_200, max_length=128, global_batch_size=512),
            ),
            "optimizer.learning_rate": 7e-4,
            "optimizer.warmup_steps": 500,
            "checkpoint.every_steps": 3_000,
            "eval.every_steps": 1_000,
        },
    )

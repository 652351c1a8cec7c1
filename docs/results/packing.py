"""Next sentence on Wikipedia and speeches, from a 6-layer encoder of width 384 (MiniLM's).

The heads are drawn from the seed.
"""

from bertjax import Config, load_recipe
from bertjax.config import Phase


def get_config() -> Config:
    return load_recipe(
        "base",
        {
            "model.hidden_size": 384,
            "model.num_layers": 6,
            "model.gelu": "erf",
            "model.intermediate_size": 1_536,
            "phases": (Phase(num_steps=800, max_length=128, global_batch_size=16),),
            "optimizer.name": "adamw",
            "optimizer.learning_rate": 2e-4,
            "optimizer.warmup_steps": 50,
            "checkpoint.every_steps": 200,
            "checkpoint.keep": 1,
            "eval.every_steps": 200,
            "eval.max_rows": 1_024,
            "log.every_steps": 20,
        },
    )

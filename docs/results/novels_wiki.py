"""2 layers, 256 wide (BERT Mini's width), on 100 novels and 442 Wikipedia articles.

Rows of 32 tokens first, 128 then: docs/results/tiny.md says why.
"""

from bertjax import Config, load_recipe
from bertjax.config import Phase


def get_config() -> Config:
    return load_recipe(
        "base",
        {
            "num_microbatches": 4,
            "model.vocab_size": 8_192,
            "model.hidden_size": 256,
            "model.num_layers": 2,
            "model.num_heads": 4,
            "model.intermediate_size": 1_024,
            "model.max_positions": 128,
            "model.initializer_range": 0.06,
            "model.dropout_rate": 0.0,
            "model.attention_dropout_rate": 0.0,
            "phases": (
                Phase(num_steps=6_000, max_length=32, global_batch_size=64),
                Phase(num_steps=12_000, max_length=128, global_batch_size=32),
            ),
            "optimizer.name": "adamw",
            "optimizer.learning_rate": 1e-3,
            "optimizer.warmup_steps": 300,
            "eval.every_steps": 500,
            "log.every_steps": 50,
        },
    )

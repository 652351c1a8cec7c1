"""BERT Tiny, 2 layers, 128 wide (Turc et al. 2019): minutes on two CPU cores.

    python -m bertjax.train --config=tiny --workdir=DIR

Without a store it trains on the documentation of the Python installation itself.

Two cores of an AMD EPYC: 209 s, held-out MLM loss 4.43 nats (training unigrams: 6.25). Rows of 32
tokens, initial weights wider than BERT's 0.02 and no dropout are what makes so short a run learn:
docs/results/tiny.md. Positions from 32 on stay untrained.
"""

from bertjax import Config, load_recipe
from bertjax.config import Phase


def get_config() -> Config:
    return load_recipe(
        "base",
        {
            "model.vocab_size": 4_096,
            "model.hidden_size": 128,
            "model.num_layers": 2,
            "model.num_heads": 2,
            "model.intermediate_size": 512,
            "model.max_positions": 128,
            "model.initializer_range": 0.08,
            "model.dropout_rate": 0.0,
            "model.attention_dropout_rate": 0.0,
            "data.global_batch_size": 32,
            "data.max_length": 32,
            "phases": (Phase(num_steps=4_000),),
            "optimizer.name": "adamw",
            "optimizer.learning_rate": 2e-3,
            "optimizer.warmup_steps": 100,
            "log.every_steps": 50,
        },
    )

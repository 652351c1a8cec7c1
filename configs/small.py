"""BERT Small: 4 layers, 512 wide, 29 M parameters (Turc et al. 2019).

python -m bertjax.train --config=small --workdir=DIR --config.data.store=STORE
"""

from bertjax import Config, load_recipe
from bertjax.config import Phase


def get_config() -> Config:
    return load_recipe(
        "base",
        {
            "model.hidden_size": 512,
            "model.num_layers": 4,
            "model.num_heads": 8,
            "model.intermediate_size": 2_048,
            "phases": (Phase(num_steps=100_000),),
            "optimizer.learning_rate": 5e-4,
            "optimizer.warmup_steps": 5_000,
            "checkpoint.every_steps": 2_000,
            "eval.every_steps": 2_000,
        },
    )

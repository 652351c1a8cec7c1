"""BERT LARGE, uncased, as in the paper: 336 M parameters, 1,000,000 steps of 256 rows.

    python -m bertjax.train --config=large --workdir=DIR --config.data.store=STORE

900,000 steps at length 128, then 100,000 at 512 (Devlin et al. 2019, appendix A.2).
"""

from bertjax import Config, load_recipe


def get_config() -> Config:
    return load_recipe(
        "base",
        {
            "model.hidden_size": 1_024,
            "model.num_layers": 24,
            "model.num_heads": 16,
            "model.intermediate_size": 4_096,
        },
    )

"""BERT LARGE, uncased, as in the paper: 336 M parameters, 1,000,000 steps of 256 rows.

    python -m bertjax.train --config=large --workdir=DIR --config.data.store=STORE

900,000 steps at length 128, then 100,000 at 512 (Devlin et al. 2019, appendix A.2).
"""

from bertjax.config import Config, DataConfig, ModelConfig, OptimizerConfig, Phase


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            hidden_size=1_024,
            num_layers=24,
            num_heads=16,
            intermediate_size=4_096,
        ),
        data=DataConfig(global_batch_size=256, max_length=128),
        phases=(
            Phase(num_steps=900_000, max_length=128),
            Phase(num_steps=100_000, max_length=512),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=10_000),
    )

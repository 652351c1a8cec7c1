"""BERT Small: 4 layers, 512 wide, 29 M parameters (Turc et al. 2019).

python -m bertjax.train --config=small --workdir=DIR --config.data.store=STORE
"""

from bertjax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimizerConfig,
    Phase,
)


def get_config() -> Config:
    return Config(
        model=ModelConfig(hidden_size=512, num_layers=4, num_heads=8, intermediate_size=2_048),
        data=DataConfig(global_batch_size=256, max_length=128),
        phases=(Phase(num_steps=100_000),),
        optimizer=OptimizerConfig(learning_rate=5e-4, warmup_steps=5_000),
        checkpoint=CheckpointConfig(every_steps=2_000),
        eval=EvalConfig(every_steps=2_000),
    )

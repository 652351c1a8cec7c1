"""Two layers, 128 wide: minutes on two CPU cores.

    python -m bertjax.train --config=tiny --workdir=DIR

Without a store it trains on the documentation of the Python installation itself.
"""

from bertjax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    LogConfig,
    ModelConfig,
    OptimizerConfig,
    Phase,
)


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            vocab_size=4_096,
            hidden_size=128,
            num_layers=2,
            num_heads=2,
            intermediate_size=512,
            max_positions=128,
        ),
        # Eight rows at a time stay in the cache: half again as fast as all 32.
        num_microbatches=4,
        data=DataConfig(global_batch_size=32, max_length=128),
        phases=(Phase(num_steps=1_500),),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=150),
        checkpoint=CheckpointConfig(every_steps=500),
        eval=EvalConfig(every_steps=500, max_rows=1_024),
        log=LogConfig(every_steps=20),
    )

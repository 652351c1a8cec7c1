"""A model so small that a run takes seconds; its two phases differ in length and batch."""

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


def get_config():
    return Config(
        model=ModelConfig(
            vocab_size=1_000,
            hidden_size=16,
            num_layers=2,
            num_heads=2,
            intermediate_size=32,
            max_positions=64,
        ),
        data=DataConfig(global_batch_size=8, max_length=32),
        phases=(Phase(num_steps=12), Phase(num_steps=6, max_length=64, global_batch_size=4)),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=4),
        checkpoint=CheckpointConfig(every_steps=4),
        eval=EvalConfig(every_steps=8, max_rows=50),
        log=LogConfig(every_steps=1),
    )

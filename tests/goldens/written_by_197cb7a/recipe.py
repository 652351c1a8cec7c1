"""The run of this folder: two phases, the second one packed, with dropout."""

from bertjax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    LogConfig,
    ModelConfig,
    OptimizerConfig,
    Phase,
)


def get_config():
    return Config(
        model=ModelConfig(
            vocab_size=200,
            hidden_size=8,
            num_layers=1,
            num_heads=2,
            intermediate_size=16,
            max_positions=192,
        ),
        data=DataConfig(global_batch_size=8, max_length=32, masking="whole_word"),
        phases=(
            Phase(num_steps=6),
            Phase(num_steps=4, max_length=192, global_batch_size=4, packing_depth=3),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
        checkpoint=CheckpointConfig(keep=1),
        log=LogConfig(every_steps=1, tensorboard=False),
    )

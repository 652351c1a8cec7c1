"""6 layers, 384 wide, on the texts of novels_wiki.py: minutes of one GPU.

Rows of 32 tokens first, 128 then: docs/results/tiny.md says why.
"""

from bertjax.config import (
    CheckpointConfig,
    Config,
    EvalConfig,
    LogConfig,
    ModelConfig,
    OptimizerConfig,
    Phase,
)


def get_config() -> Config:
    return Config(
        model=ModelConfig(
            vocab_size=8_192,
            hidden_size=384,
            num_layers=6,
            num_heads=6,
            intermediate_size=1_536,
            max_positions=128,
            initializer_range=0.04,
            dropout_rate=0.0,
            attention_dropout_rate=0.0,
        ),
        phases=(
            Phase(num_steps=2_000, max_length=32, global_batch_size=1_024),
            Phase(num_steps=5_200, max_length=128, global_batch_size=512),
        ),
        optimizer=OptimizerConfig(name="adamw", learning_rate=7e-4, warmup_steps=500),
        checkpoint=CheckpointConfig(every_steps=3_000),
        eval=EvalConfig(every_steps=1_000),
        log=LogConfig(every_steps=50),
    )

"""2 layers, 256 wide (BERT Mini's width), on 100 novels and 442 Wikipedia articles.

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
        num_microbatches=4,
        model=ModelConfig(
            vocab_size=8_192,
            hidden_size=256,
            num_layers=2,
            num_heads=4,
            intermediate_size=1_024,
            max_positions=128,
            initializer_range=0.06,
            dropout_rate=0.0,
            attention_dropout_rate=0.0,
        ),
        phases=(
            Phase(num_steps=6_000, max_length=32, global_batch_size=64),
            Phase(num_steps=12_000, max_length=128, global_batch_size=32),
        ),
        optimizer=OptimizerConfig(name="adamw", learning_rate=1e-3, warmup_steps=300),
        checkpoint=CheckpointConfig(every_steps=1_000),
        eval=EvalConfig(every_steps=500),
        log=LogConfig(every_steps=50),
    )

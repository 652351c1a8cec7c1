"""Next sentence on Wikipedia and speeches, from a 6-layer encoder of width 384 (MiniLM's).

The heads are drawn from the seed.
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
            vocab_size=30_522,
            hidden_size=384,
            num_layers=6,
            num_heads=12,
            intermediate_size=1_536,
            gelu="erf",
        ),
        phases=(Phase(num_steps=800, max_length=128, global_batch_size=16),),
        optimizer=OptimizerConfig(name="adamw", learning_rate=2e-4, warmup_steps=50),
        checkpoint=CheckpointConfig(every_steps=200, keep=1),
        eval=EvalConfig(every_steps=200, max_rows=1_024),
        log=LogConfig(every_steps=20),
    )

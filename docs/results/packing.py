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
        phases=(Phase(num_steps=250, max_length=192, global_batch_size=16),),
        optimizer=OptimizerConfig(name="adamw", learning_rate=1e-4, warmup_steps=25),
        checkpoint=CheckpointConfig(every_steps=125, keep=1),
        eval=EvalConfig(every_steps=125, max_rows=2_048),
        log=LogConfig(every_steps=10),
    )

"""Continued pre-training of a 6-layer encoder of width 384 (MiniLM's) on novels, MLM only.

Its vocabulary is BERT's uncased one; it has no MLM head, which is drawn.
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
            next_sentence=False,
        ),
        phases=(Phase(num_steps=1_000, max_length=64, global_batch_size=32),),
        optimizer=OptimizerConfig(name="adamw", learning_rate=3e-4, warmup_steps=100),
        checkpoint=CheckpointConfig(every_steps=250, keep=1),
        eval=EvalConfig(every_steps=100),
        log=LogConfig(every_steps=20),
    )

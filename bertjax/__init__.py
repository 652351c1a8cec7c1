"""bertjax: pre-training of BERT-like encoders in JAX on TPUs and GPUs."""

from bertjax.config import Config, ConfigError

__all__ = ["Config", "ConfigError"]
__version__ = "0.1.0"

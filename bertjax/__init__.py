"""bertjax: pre-training of BERT-like encoders in JAX on TPUs and GPUs."""

from typing import TYPE_CHECKING, Any

from bertjax import moved
from bertjax.config import Config, ConfigError
from bertjax.errors import BertjaxError
from bertjax.version import __version__

if TYPE_CHECKING:
    from bertjax.encoder import Encoder, load

__all__ = ["BertjaxError", "Config", "ConfigError", "Encoder", "__version__", "load"]

moved.install()


def __getattr__(name: str) -> Any:
    """Imports `load` and `Encoder`, and with them jax, when they are first asked for."""
    if name in ("Encoder", "load"):
        from bertjax import encoder

        return getattr(encoder, name)
    raise AttributeError(f"module 'bertjax' has no attribute {name!r}")

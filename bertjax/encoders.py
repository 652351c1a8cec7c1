"""One record per encoder: its layers and its embeddings. `config.model.encoder` names one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from bertjax.registry import Registry


@dataclasses.dataclass(frozen=True)
class EncoderVariant:
    """What an encoder is made of.

    Modules are given as dotted names MODULE:NAME, imported when they are first needed, or as the
    classes themselves.

    Attributes:
      name: in `config.model.encoder`.
      layer: the Flax module of one layer, made and called like `bertjax.models.bert.EncoderLayer`.
      embeddings: likewise, like `bertjax.models.bert.Embeddings`.
      without: paths of `bertjax.parameters.TABLE` that BERT has and this encoder has not.
    """

    name: str
    layer: str | Callable[..., Any] = "bertjax.models.bert:EncoderLayer"
    embeddings: str | Callable[..., Any] = "bertjax.models.bert:Embeddings"
    without: tuple[str, ...] = ()


ENCODERS = Registry("encoder", "register_encoder", {"bert": EncoderVariant("bert")})

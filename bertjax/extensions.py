"""Heads, objectives and encoders of a user's own, with their parameters.

`examples/` has a complete file for each; docs/decisions/extension_points.md says what can be
registered and what cannot. A registration lasts as long as the process.
"""

from __future__ import annotations

from collections.abc import Mapping

from bertjax.config import ConfigError
from bertjax.encoders import ENCODERS, EncoderVariant
from bertjax.heads import HEADS, Head
from bertjax.parameters import TABLE, Parameter, part


def register_head(
    head: Head, parameters: Mapping[str, Parameter] | None = None, *, replace: bool = False
) -> None:
    """Adds a head, which `config.model.head` then can name.

    A head with `trained_on="store"` is a pre-training objective. One with `trained_on="task"` is
    fine-tuned on a task of `register_task`.

    Args:
      head: the record.
      parameters: of the layers in `head.layers`, by path, as in `bertjax.parameters.TABLE`.
      replace: whether the head may replace another one that you have registered under its name.

    Raises:
      ConfigError: the name or the path of a parameter is taken, a layer has no parameters, or a
        field that `trained_on` needs is empty.
    """
    lines = dict(parameters or {})
    _check_complete(head)
    for path in lines:
        if part(path) not in head.layers:
            raise ConfigError(
                f"register_head: the parameter {path!r} lies in {part(path)!r}, which is not among "
                f"the layers of the head {head.name!r} ({', '.join(head.layers) or 'none'})"
            )
    for layer in head.layers:
        if layer not in map(part, (*lines, *TABLE)):
            raise ConfigError(
                f"register_head: the layer {layer!r} of the head {head.name!r} has no parameters: "
                f"give a line for each, such as {layer + '/kernel'!r}, in parameters="
            )
    _check_paths(lines, replace)
    HEADS.add(head.name, head, replace=replace)
    _add(lines, replace)


def register_encoder(
    variant: EncoderVariant,
    parameters: Mapping[str, Parameter] | None = None,
    *,
    replace: bool = False,
) -> None:
    """Adds an encoder, which `config.model.encoder` then can name.

    Args:
      variant: the record.
      parameters: those that BERT does not have, by path, such as
        `encoder/layer_*/mlp/gate/kernel`. Each belongs to this encoder alone.
      replace: whether it may replace another one that you have registered under its name.

    Raises:
      ConfigError: the name or the path of a parameter is taken, or a path is not one of an encoder.
    """
    owner = variant.name
    lines = {path: line._replace(encoder=owner) for path, line in (parameters or {}).items()}
    for path in (*lines, *variant.without):
        if part(path) not in ("embeddings", "encoder"):
            raise ConfigError(
                f"register_encoder: the parameter {path!r} does not lie in 'embeddings' or "
                "'encoder': a layer above the encoder belongs to a head, see register_head"
            )
    for path in variant.without:
        if path not in TABLE.built_in:
            raise ConfigError(
                f"register_encoder: without has {path!r}, which BERT does not have; "
                "bertjax.parameters.TABLE lists the paths, with layer_* for all layers"
            )
    _check_paths(lines, replace)
    ENCODERS.add(variant.name, variant, replace=replace)
    _add(lines, replace)


def _check_complete(head: Head) -> None:
    """Refuses a record that would fail later, in the middle of a run."""
    needed = {
        "store": ("objective",),
        "task": ("objective", "outputs", "answers", "loss", "task", "verbs"),
        "nothing": (),
    }
    if head.trained_on not in needed:
        raise ConfigError(
            f"register_head: trained_on={head.trained_on!r} of the head {head.name!r}: expected "
            f"one of {', '.join(needed)}"
        )
    for name in ("module", *needed[head.trained_on]):
        if not getattr(head, name):
            raise ConfigError(
                f"register_head: {name} of the head {head.name!r} is empty, which "
                f"trained_on={head.trained_on!r} needs"
            )
    for answer in (*head.outputs.values(), *filter(None, [head.answer_weights])):
        if answer not in head.answers:
            raise ConfigError(
                f"register_head: the head {head.name!r} has no answer {answer!r}; its answers are "
                f"{', '.join(head.answers)}"
            )


def _check_paths(lines: Mapping[str, Parameter], replace: bool) -> None:
    """Refuses paths that are taken, before anything is added."""
    for path, line in lines.items():
        TABLE.check(path, line, replace=replace)


def _add(lines: Mapping[str, Parameter], replace: bool) -> None:
    for path, line in lines.items():
        TABLE.add(path, line, replace=replace)

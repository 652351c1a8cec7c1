"""The page docs/configuration.md, made of the fields.

python -m bertjax.config.page > docs/configuration.md
"""

import re

from bertjax.config.description import FieldDescription, in_words, sections
from bertjax.config.schema import FineTuningConfig

_HEAD = """# Configuration

Every field of a run. `--config.NAME=VALUE` sets one over a recipe, as in
`--config.optimizer.learning_rate=2e-4`. `--help_config` prints these tables in a terminal,
`--help_config=optimizer` one of them, and `--print_config` the values of a recipe. A run may be
resumed with another value of a field that *may change*; another value of any other is refused.

This page is made of [schema.py](../bertjax/config/schema.py):
`python -m bertjax.config.page > docs/configuration.md`.
"""
_KINDS = {int: "integer", float: "number", str: "text", dict: "JSON"}


def page() -> str:
    """The page as Markdown, with the sections of pre-training and of fine-tuning."""
    parts = [_HEAD]
    for prefix, meaning, fields in sections(FineTuningConfig()):
        parts.append(f"## {f'`{prefix[:-1]}`' if prefix else 'The run'}\n\n{meaning}\n")
        parts.append("| field | value | default | may change | |\n|---|---|---|---|---|")
        parts += [*map(_row, fields), ""]
    return "\n".join(parts)


def _row(field: FieldDescription) -> str:
    name = field.name.rpartition(".")[2]
    kind = field.setting.unit or _KINDS.get(field.kind, "Python tuple")
    kind = ", ".join(f"`{choice}`" for choice in field.choices) or kind
    allowed = f"{kind}, {field.setting.bounds}" if field.setting.bounds else kind
    meaning = f"{field.setting.meaning} {field.values and field.values + '.'}".strip()
    meaning = re.sub(r"\bdocs/(\S+?\.md)\b", r"[docs/\1](\1)", meaning)
    changes = "yes" if field.may_change else ""
    return f"| `{name}` | {allowed} | `{in_words(field.default)}` | {changes} | {meaning} |"


if __name__ == "__main__":
    print(page(), end="")

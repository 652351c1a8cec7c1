"""Writes docs/configuration.md from the fields of the configuration.

python -m bertjax.config.page > docs/configuration.md
"""

import re

from bertjax.config.description import FieldDescription, in_words, sections
from bertjax.config.schema import FineTuningConfig

_HEAD = """# Configuration

This page lists every field of a run's configuration. `--config.NAME=VALUE` overrides the value of
a recipe, as in `--config.optimizer.learning_rate=2e-4`. `--help_config` prints these tables in a
terminal, `--help_config=optimizer` prints one of them, and `--print_config` prints the values of a
recipe. A run may be resumed with another value of a field that *may change*. Another value of any
other field is refused. [style.md](style.md) has a glossary.

`python -m bertjax.config.page > docs/configuration.md` writes this page from
[schema.py](../bertjax/config/schema.py).
"""
_KINDS = {int: "integer", float: "number", str: "text", dict: "JSON"}


def page() -> str:
    """The page as Markdown, with the sections of pre-training and of fine-tuning."""
    parts = [_HEAD]
    for prefix, meaning, fields in sections(FineTuningConfig()):
        parts.append(f"## {f'`{prefix[:-1]}`' if prefix else 'The run'}\n\n{meaning}\n")
        parts.append("| field | value | default | may change | meaning |\n|---|---|---|---|---|")
        parts += [*map(_row, fields), ""]
    return "\n".join(parts)


def _row(field: FieldDescription) -> str:
    name = field.name.rpartition(".")[2]
    kind = field.setting.unit or _KINDS.get(field.kind, "Python tuple")
    kind = ", ".join(f"`{choice}`" for choice in field.choices) or kind
    bounds = [field.setting.bounds, *(f"or {value}" for value in field.setting.exceptions)]
    allowed = ", ".join([kind, *filter(None, bounds)])
    meaning = f"{field.setting.meaning} {field.values and field.values + '.'}".strip()
    meaning = re.sub(r"\bdocs/(\S+?\.md)\b", r"[docs/\1](\1)", meaning)
    changes = "yes" if field.may_change else ""
    return f"| `{name}` | {allowed} | `{in_words(field.default)}` | {changes} | {meaning} |"


if __name__ == "__main__":
    print(page(), end="")

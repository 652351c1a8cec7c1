"""What tests register is gone after them."""

import contextlib

from bertjax.data.tokenizers.tokenizer import TOKENIZERS
from bertjax.encoders import ENCODERS
from bertjax.heads import HEADS
from bertjax.parameters import TABLE
from bertjax.tasks.registry import TASKS

REGISTRIES = (HEADS, ENCODERS, TABLE, TASKS, TOKENIZERS)


@contextlib.contextmanager
def restored():
    """Restores the records of all registries."""
    kept = [dict(records) for records in REGISTRIES]
    try:
        yield
    finally:
        for records, before in zip(REGISTRIES, kept, strict=True):
            records.clear()
            records.update(before)


def forget(*registries):
    """As in a process that has not imported the module that registers."""
    for records in registries:
        for name in records.own():
            del records[name]

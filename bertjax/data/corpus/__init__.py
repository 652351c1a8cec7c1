"""Documents: from files, tensorflow-datasets and this Python's own documentation."""

from bertjax.moved import forward

__getattr__ = forward(__name__, "corpus", "read_blocks", "read_documents")

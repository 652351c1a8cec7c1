"""The token store: documents as ids on disk."""

from bertjax.moved import forward

__getattr__ = forward(__name__, "store", "Store", "StoreError", "open_store", "verify_store")

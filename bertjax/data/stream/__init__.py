"""From a store to batches: rows, pairs, packing, masking, order."""

from bertjax.moved import forward

__getattr__ = forward(__name__, "tf_data", "BatchStream", "StreamError")

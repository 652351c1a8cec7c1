"""LayerNorm(x + dropout(y)) and its gradients in NumPy, in float64."""

import numpy as np


def reference(x, y, scale, bias, gradient, keep, rate, epsilon):
    """The result and the gradients of x, y, scale and bias.

    Args:
      x: [b, t, d]; so are `y`, `gradient` (of the result) and `keep`.
      y: the array that is dropped.
      scale: [d].
      bias: [d].
      gradient: of the result.
      keep: the dropout mask, boolean.
      rate: of the dropout.
      epsilon: added to the variance.
    """
    x, y, scale, gradient = (np.asarray(a, np.float64) for a in (x, y, scale, gradient))
    total = x + np.where(keep, y / (1 - rate), 0)
    centred = total - total.mean(-1, keepdims=True)
    inverse = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    normalised = centred * inverse
    scaled = gradient * scale
    of_total = inverse * (
        scaled
        - scaled.mean(-1, keepdims=True)
        - normalised * (scaled * normalised).mean(-1, keepdims=True)
    )
    return (
        normalised * scale + bias,
        of_total,
        np.where(keep, of_total / (1 - rate), 0),
        (gradient * normalised).sum((0, 1)),
        gradient.sum((0, 1)),
    )

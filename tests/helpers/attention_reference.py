"""Attention with dropout in NumPy and float64, with a hash of its own: what kernels are held to."""

import jax
import numpy as np


def mix(x):
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def kept(keys, heads, length, rate):
    """The mask [b, h, t, t] by the formula in the docstring of `random_bits`, in NumPy."""
    w0, w1 = np.asarray(jax.random.key_data(keys)).T[:, :, None]
    steps = np.uint32(0x9E3779B1), np.uint32(0x85EBCA77)
    head, place = (np.arange(n, dtype=np.uint32) for n in (heads, length))
    a, b = mix(head * steps[0] + w0), mix(head * steps[1] + w1)  # [b, h]
    line = mix(place * steps[0] + a[..., None])
    column = mix(place * steps[1] + b[..., None])
    return mix(line[..., :, None] + column[..., None, :]) >= round(rate * 2**32)


def reference(q, k, v, gradient, segment_ids, keep, rate, causal=False):
    """Output and gradients of q, k and v in float64."""
    q, k, v, gradient = (np.float64(x).swapaxes(1, 2) for x in (q, k, v, gradient))  # [b, h, t, k]
    own = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    visible = own & (segment_ids > 0)[:, None, None, :]
    if causal:
        visible = np.tril(visible)
    scale = q.shape[-1] ** -0.5
    scores = np.where(visible, q @ k.swapaxes(2, 3) * scale, -1e30)
    p = np.where(visible, np.exp(scores - scores.max(-1, keepdims=True)), 0.0)
    p /= np.maximum(p.sum(-1, keepdims=True), 1e-300)
    factor = keep / (1 - rate)
    dp = gradient @ v.swapaxes(2, 3) * factor
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) * scale
    results = (
        (p * factor) @ v,
        ds @ k,
        ds.swapaxes(2, 3) @ q,
        (p * factor).swapaxes(2, 3) @ gradient,
    )
    return [x.swapaxes(1, 2) for x in results]

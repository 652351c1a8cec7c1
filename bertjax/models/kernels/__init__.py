"""Attention in Pallas kernels, for TPUs and GPUs."""

"""Attention and the end of a sublayer in Pallas kernels, for TPUs and GPUs."""

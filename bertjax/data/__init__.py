"""From text to batches: tokenizers, the token store, and the stream of rows. Imports no jax."""

"""What is wrong with a corpus or a store."""

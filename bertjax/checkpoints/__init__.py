"""Checkpoints: sealed and verified, in folders and buckets; and loadable workdirs."""

"""Files, buckets, locks and caches, independent of what they store."""

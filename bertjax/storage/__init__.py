"""Files, buckets, locks and caches; nothing here knows what it stores."""

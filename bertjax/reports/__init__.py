"""Reports of a run: metrics, curves, throughput, profiles."""

"""What a run tells: metrics, curves, throughput, profiles."""

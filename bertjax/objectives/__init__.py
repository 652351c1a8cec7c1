"""What runs minimize: losses as sums."""

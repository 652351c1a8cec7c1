"""What runs minimise: losses as sums."""

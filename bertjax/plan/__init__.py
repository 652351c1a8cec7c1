"""Plans: whether a run fits, and how fast it can be."""

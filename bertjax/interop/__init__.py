"""Names and shapes of other people's weights; numpy arrays in between."""

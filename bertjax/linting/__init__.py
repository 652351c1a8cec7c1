"""Checks of a corpus or a store: what would waste or spoil a run."""

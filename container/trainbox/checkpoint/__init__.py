"""Checkpoints on the disk: a store in which the newest valid one counts, and the manifest of each."""

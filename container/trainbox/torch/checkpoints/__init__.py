"""Checkpoints of PyTorch trainings: the whole state for an exact resume, written while the training continues."""

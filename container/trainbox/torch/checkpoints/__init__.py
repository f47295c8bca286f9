"""Checkpoints of a training with PyTorch: everything that exact resume needs, written beside the training."""

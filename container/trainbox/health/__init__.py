"""Whether the cluster is sound, and which part of it is not: checks before and during training."""

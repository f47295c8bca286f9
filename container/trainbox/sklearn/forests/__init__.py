"""Forests that grow in groups of trees: on several hosts, from checkpoints, and from a former forest."""

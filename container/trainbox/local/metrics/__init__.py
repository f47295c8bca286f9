"""Metrics of a local job, found in its lines."""

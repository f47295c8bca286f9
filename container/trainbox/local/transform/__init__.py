"""Batch transform on this machine: files in, one `.out` file for each, as SageMaker makes them."""

"""Hyperparameter tuning on this machine: a search space, trials that are jobs of `run_job`, and their record."""

"""Hyperparameters of XGBoost: types and ranges, which combinations are valid, and the metrics that they declare."""

"""Hyperparameters of XGBoost: types and ranges, what goes with what, and the metrics that follow from them."""

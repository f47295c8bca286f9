"""Whether a model is one, before XGBoost gets the bytes: it trusts the numbers in them, and crashes where they lie.

A file that was damaged, or written by somebody else, would end the process with a memory error or read and write
beyond its arrays (XGBoost 3.2 to 3.4: child, feature, parent or class out of range). `check_model` takes the bytes of
UBJSON or JSON as XGBoost writes them and refuses what is not a model, with the tree and the node.
"""

from trainbox.xgboost.model_check.model import Model, check_model

__all__ = ["Model", "check_model"]

"""Serving: the bytes of a request become rows, a model predicts them, and the predictions become an answer."""

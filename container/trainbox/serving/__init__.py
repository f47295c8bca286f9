"""Serving: answers requests with a model; imports no framework before it has one to load."""

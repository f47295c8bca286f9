"""The user's own inference.py: its hooks, what they are called with, and what it requires."""

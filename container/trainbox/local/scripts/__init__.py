"""A script before it runs: where it is, and what it declares."""

"""Which points are tried, and which trials are stopped early."""

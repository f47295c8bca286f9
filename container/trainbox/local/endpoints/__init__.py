"""A model on this machine: found in a folder, archive or job, started as an endpoint, and asked."""

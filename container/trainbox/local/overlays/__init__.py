"""The environment of a local job with requirements of its own."""

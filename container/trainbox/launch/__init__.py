"""The former name of `trainbox.supervisor`, kept for one version."""

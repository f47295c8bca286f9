"""The model of an endpoint: found among the files, loaded, and tried on the rows of its card."""

"""The inputs of a local job: what `--channel` and `--hosts` ask for, which files each host gets, and how they come."""

"""The ranks of a host: the fork server that starts them, the program each runs, and how they fail."""

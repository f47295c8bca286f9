"""How a job ends: the diagnosis, the failure file, the last line of the log."""

"""The supervisor: the program `train`, which runs a script as PID 1 and reports how it ended."""

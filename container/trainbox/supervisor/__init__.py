"""The supervisor: the program `train`, which runs a script, survives it and says how it ended."""

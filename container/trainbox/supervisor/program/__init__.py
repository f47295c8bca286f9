"""The program of a job: which one it is, where its code comes from, and the command that starts it."""

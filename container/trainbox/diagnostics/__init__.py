"""Why a job failed, as values: the cause in what a process wrote, findings of checks, the verdict of all hosts."""

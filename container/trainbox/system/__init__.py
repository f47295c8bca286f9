"""The machine a job runs on: processors, memory, network, processes, and the lines they write."""

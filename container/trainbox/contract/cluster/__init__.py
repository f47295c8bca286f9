"""The processes of a job: ranks, the hosts that train together, the scheduler, the progress of each rank."""

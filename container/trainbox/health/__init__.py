"""Health checks of the hosts of a job, before and during training; a faulty part is named."""

"""From a command line to the plan of a tuning job."""

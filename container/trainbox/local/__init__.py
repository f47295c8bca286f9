"""What a person runs on their own machine: the same job as in the cloud, in processes or in containers."""

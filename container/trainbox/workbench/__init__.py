"""What a person runs on their own machine: the same job as in the cloud, with nothing but processes."""

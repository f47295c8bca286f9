"""Where the hosts of a local job run: in processes, in namespaces, or in containers."""

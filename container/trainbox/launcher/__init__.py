"""The launcher of ranks: one agent per host on torch elastic, ranks forked from a server, restarts, hang detection."""

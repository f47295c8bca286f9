"""The launcher of ranks: an agent of torch elastic for each host, ranks forked from a server, a watch over them."""

"""Serve a store of torch on one address; `TCPStore` on its own listens on every address of the host."""

import datetime as dt

from torch._C._distributed_c10d import TCPStore

from trainbox.peers.wire import listen

#: libuv, which serves the store, sets its own when it takes the socket over.
_BACKLOG = 2048


def serve_store(host: str, port: int, *, timeout: dt.timedelta, shared: bool = False) -> TCPStore:
    """Return the server of a store that listens on the address of a host, and on no other.

    Args:
        host: A name or an address of this host.
        port: Where to listen; 0 takes any that is free.
        timeout: How long a call waits for a key.
        shared: Whether another `TCPStore` of this process with the same port is the same store (`multi_tenant`), as
            torch's `env://` asks for.

    Raises:
        OSError: The port is taken, or the name is not this machine's.
    """
    listener = listen(host, port, backlog=_BACKLOG)
    port = listener.getsockname()[1]
    return TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timeout,
        multi_tenant=shared,
        master_listen_fd=listener.detach(),  # the store closes it
    )

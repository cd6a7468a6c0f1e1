"""Where the page is: a socket that listens before anything is loaded, and its address in words."""

from __future__ import annotations

import errno
import socket

from paella_jax.config import UserError

LOCAL = "127.0.0.1"


class AddressError(UserError, ValueError):
    """The page cannot be served there; the message says what to do."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
      host: name or address of this machine; 127.0.0.1 is reached from this machine alone.
      port: 0 is any that is free.

    Raises:
      AddressError: a port that is taken or not allowed, or a host that is not this machine.
    """
    if not 0 <= port < 2**16:
        raise AddressError(f"--port must be from 0 to {2**16 - 1}, got {port}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(found[4][:2], family=found[0])
    except socket.gaierror:
        raise AddressError(f"--host {host} is not known; give an address of this machine") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            told = f"port {port} is taken, perhaps by another server; give another --port, or 0"
        elif error.errno == errno.EACCES:
            told = f"port {port} is not allowed to you; give a --port from 1024"
        else:
            told = f"--host {host} is no address of this machine ({error.strerror})"
        raise AddressError(told) from None


def address_of(listening: socket.socket) -> str:
    """The page's address for a browser."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

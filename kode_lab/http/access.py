"""Checks that a request to a server without tokens comes from this machine, not from a web page.

Every program on this machine may use such a server. A page in a browser must not, and can reach
the port in two ways: under a host name of its own that resolves to 127.0.0.1 (DNS rebinding), which
the Host header shows; and by a request from another origin, which the Origin header shows.

Source: RFC 9110 section 7.2 (Host), RFC 6454 (Origin).
"""

from __future__ import annotations

from collections.abc import Iterable

from kode_lab.http.exchange import Refusal

__all__ = ["check_local_access"]

_LOOPBACK_NAMES = (b"localhost", b"127.0.0.1", b"[::1]")


def check_local_access(
    headers: Iterable[tuple[bytes, bytes]], *, any_host: bool = False
) -> Refusal | None:
    """Return why a request with these headers is refused, or None.

    Args:
        headers: names in lower case.
        any_host: the server has a name of its own and asks for tokens; only the number of Host
            headers is checked.
    """
    hosts, origin = [], None
    for name, value in headers:
        if name == b"host":
            hosts.append(value.lower())
        elif name == b"origin":
            origin = value.lower()
    if len(hosts) != 1:
        return Refusal(400, "BadRequest", "a request needs exactly one Host header")
    if any_host:
        return None
    host = hosts[0]
    name, colon, port = host.rpartition(b":")
    if (name if colon and (port.isdigit() or not port) else host) not in _LOOPBACK_NAMES:
        said = "this server answers to localhost and 127.0.0.1 only: use one of them as the host"
        return Refusal(421, "MisdirectedRequest", said)
    if origin is not None and origin.partition(b"://")[2] != host:
        said = "this request comes from a page of another origin: only this server's pages may ask"
        return Refusal(403, "ForeignOrigin", said)
    return None

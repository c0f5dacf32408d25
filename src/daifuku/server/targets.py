"""Addresses that the server itself connects to: read by one parser, looked up once, and checked after that."""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from urllib.parse import urlsplit

MAX_LENGTH = 2048
PORTS = {"http": 80, "https": 443}
"""Of the schemes there are."""

FIRST_FREE_PORT = 1024
"""Lower ones are not of the web, but for those of `PORTS`: mail and the like takes no orders from here."""

_PRINTABLE = re.compile(r"[\x21-\x7e]+")
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}$)({_LABEL}\.)*{_LABEL}")
_LOOKS_LIKE_A_NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)")
_TRANSLATED = tuple(ipaddress.ip_network(text) for text in ("2002::/16", "2001::/32", "192.88.99.0/24"))
"""Addresses that stand for others, which nobody has checked."""
_UNICAST_6 = ipaddress.ip_network("2000::/3")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
LookUp = Callable[[str, int], Awaitable[Sequence[str]]]
"""(host, port) → its addresses. Raises OSError."""


class BadTarget(Exception):
    """Nothing is sent there. The message repeats nothing of the address."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where to connect, and what to ask for there."""

    scheme: str
    host: str
    """A name in small letters, or an address; one of IPv6 without brackets."""
    port: int
    path: str
    """With the query."""

    @property
    def shown_host(self) -> str:
        """As URLs and Host headers have it, with the port where it is not the usual one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


def parse_target(url: object) -> Target:
    """What a URL says. Raises BadTarget for anything that two readers might take for different things."""
    if not isinstance(url, str) or len(url) > MAX_LENGTH or not _PRINTABLE.fullmatch(url) or "\\" in url:
        raise BadTarget(f"It is a URL of at most {MAX_LENGTH} printable ASCII characters, without backslashes.")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or ""), parts.port
    except ValueError as error:
        raise BadTarget("It is no URL.") from error
    if parts.scheme not in PORTS or not url.lower().startswith(f"{parts.scheme}://"):
        raise BadTarget("It begins with https:// or http://.")
    if "@" in parts.netloc or "#" in url or "%" in parts.netloc or parts.netloc.endswith(":"):
        raise BadTarget("It has no user, no password and no fragment.")
    _check_host(host, bracketed="[" in parts.netloc)
    if port == 0:
        raise BadTarget("Its port is 1 to 65535.")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(scheme=parts.scheme, host=host, port=port or PORTS[parts.scheme], path=path)


def _check_host(host: str, *, bracketed: bool) -> None:
    if bracketed or _LOOKS_LIKE_A_NUMBER.fullmatch(host.rpartition(".")[2]):
        try:
            ipaddress.ip_address(host)
        except ValueError as error:
            raise BadTarget("Its address is written in an unusual way. Try four decimal numbers.") from error
    elif not _NAME.fullmatch(host):
        raise BadTarget("Its host is no name of the DNS.")


def is_public(address: str) -> bool:
    """Whether an address belongs to one machine somewhere on the internet, and stands for no other one."""
    found: Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and found not in _UNICAST_6:
        return False
    if any(found in network for network in _TRANSLATED if network.version == found.version):
        return False
    return found.is_global and not (found.is_multicast or found.is_reserved)


async def look_up(host: str, port: int) -> Sequence[str]:
    """The addresses that the system knows for a name. Raises OSError."""
    found = await asyncio.get_running_loop().run_in_executor(
        _resolvers(), lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    )
    return [str(address[0]) for *_, address in found]


@cache
def _resolvers() -> ThreadPoolExecutor:
    """Not the threads that everything else uses: a slow name server may keep them waiting."""
    return ThreadPoolExecutor(4, thread_name_prefix="look-up")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Where clients may have the server send something."""

    hosts: frozenset[str] = frozenset()
    """Names, or with a port name:port. Without one only the usual port of the scheme is meant."""
    anywhere: bool = False
    """Any public address too."""
    private: bool = False
    """The named hosts may have addresses that are not public."""
    look_up: LookUp = look_up

    def check(self, url: object) -> Target:
        """What can be told without a name server. Raises BadTarget."""
        target = parse_target(url)
        named = self._is_named(target)
        if not named and not self.anywhere:
            raise BadTarget("This server sends nothing there." if self.hosts else "This server sends no webhooks.")
        if not named and target.port < FIRST_FREE_PORT and target.port not in PORTS.values():
            raise BadTarget("Its port is not one of the web. Try 443.")
        is_name = not _LOOKS_LIKE_A_NUMBER.fullmatch(target.host.rpartition(".")[2]) and ":" not in target.host
        if not is_name and not (named and self.private) and not is_public(target.host):
            raise BadTarget("Its address is not public.")
        return target

    async def address(self, target: Target) -> str:
        """The one address to connect to. Raises BadTarget if any address of the host is not public; OSError."""
        found = await self.look_up(target.host, target.port)
        if not found:
            raise OSError("the host has no address")
        if not (self.private and self._is_named(target)) and not all(map(is_public, found)):
            raise BadTarget("Its address is not public.")
        return found[0]

    def _is_named(self, target: Target) -> bool:
        with_port = f"{target.shown_host.removesuffix(f':{target.port}')}:{target.port}"
        return target.shown_host in self.hosts or with_port in self.hosts

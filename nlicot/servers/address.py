"""A server's address, and the key that it may be sent: encrypted or to this machine only, unless allowed."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from nlicot.errors import ConfigError

_ADDRESS = re.compile(r"https?://[^\s/:]+\S*|https?://\[[^\s/]+\]\S*", re.I)


def bare_address(server_url: str) -> str:
    """Strip `/v1` from a server's address."""
    return server_url.rstrip("/").removesuffix("/v1").rstrip("/")


def checked_address(server: str) -> str:
    """Refuse what is not a server's address; what may be a password is not shown."""
    if "@" in server:
        found, remedy = "a user name or password", "a key is read from the environment or from .env"
        raise ConfigError(f"--server_url: found {found} in the address, expected none: {remedy}")
    if "?" in server or "#" in server:
        raise ConfigError("--server_url: found a query in the address, expected it to end before ? or #")
    problem = "" if not server or _ADDRESS.fullmatch(server) else "expected http:// or https:// and a host"
    try:
        _ = urlsplit(server).port
    except ValueError as error:
        problem = str(error)
    if problem:
        raise ConfigError(f"--server_url: found {server!r}, {problem}, for example http://localhost:8000")
    return server


def key_for(server: str, variable: str, *, send_key: bool | None, own_server: str = "") -> str:
    """Return the key in an environment variable, or in `.env`, for a server; "" for none.

    Args:
        send_key: None sends a key of `own_server` only there, others only over an encrypted connection or to
            this machine; true sends it anywhere, false nowhere.
        own_server: the address of the provider that issued the key, "" for any.

    Raises:
        ConfigError: no key looks like this one, or it should not be sent.
    """
    api_key = "" if send_key is False else _read_key(variable)
    if api_key and not (api_key.isascii() and api_key.isprintable() and len(api_key.split()) == 1):
        raise ConfigError(f"{variable}: found a blank or a character that a key cannot have")
    if api_key and send_key is None:
        _check_receiver(server, variable, own_server)
    return api_key


def _check_receiver(server: str, variable: str, own_server: str) -> None:
    """Refuse to send a key to a server that it may not be meant for, or where others can read it."""
    host, own = urlsplit(server).hostname or "", urlsplit(own_server).hostname
    problem = ""
    if own and host != own and not host.endswith(own[own.index(".") :]):
        problem = f"to a server other than {own}"
    elif urlsplit(server).scheme.casefold() != "https" and not _is_this_machine(host):
        problem = "unencrypted, so that others can read it"
    if problem:
        raise ConfigError(
            f"--server_url {server}: the key in {variable} would be sent {problem}; "
            "to send it, add --send_key true; to send none, --send_key false"
        )


def _is_this_machine(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read_key(variable: str) -> str:
    """Return a key from the environment, else from `.env` in the working folder, else ""."""
    key, path = os.environ.get(variable, "").strip(), Path(".env")
    for line in (
        path.read_text(encoding="utf-8", errors="replace").splitlines() if not key and path.is_file() else ()
    ):
        name, _, value = line.strip().removeprefix("export ").partition("=")
        if name.strip() == variable and value.strip():
            return value.strip().strip("\"'")
    return key

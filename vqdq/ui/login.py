"""Who may come in: names with hashed passwords, from a file, the environment or the command line.

`python -m vqdq.ui.login NAME` asks for a password and prints the line for the file.
"""

from __future__ import annotations

import asyncio
import getpass
import hashlib
import hmac
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vqdq.errors import UserError
from vqdq.jobs.log import note

VARIABLE = "VQDQ_AUTH"
_KIND = "scrypt"
_COST, _BLOCK, _LANES = 1 << 14, 8, 1  # 16 MB and about 50 ms a try (RFC 7914, section 2)
_MOST_COST = 1 << 20
_MAX_PASSWORD = 1024
_LINE = "Write a line NAME:PASSWORD for each person; python -m vqdq.ui.login NAME hashes one."


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A password that is not kept: scrypt's parameters, salt and 32 bytes."""

    cost: int
    block: int
    lanes: int
    salt: bytes
    digest: bytes

    @classmethod
    def of(cls, password: str) -> Secret:
        """Returns the hash of a password with fresh salt."""
        salt = secrets.token_bytes(16)
        found = _scrypt(password, salt, _COST, _BLOCK, _LANES)
        return cls(cost=_COST, block=_BLOCK, lanes=_LANES, salt=salt, digest=found)

    @classmethod
    def parse(cls, text: str) -> Secret:
        """Returns the hash in `scrypt$N$r$p$salt$digest`, the bytes in hexadecimal.

        Raises:
            ValueError: it is none, or takes more memory than a login may.
        """
        kind, cost, block, lanes, salt, digest = text.split("$")
        made = cls(
            cost=int(cost),
            block=int(block),
            lanes=int(lanes),
            salt=bytes.fromhex(salt),
            digest=bytes.fromhex(digest),
        )
        small = 1 < made.cost <= _MOST_COST and 0 < made.block <= 32 and 0 < made.lanes <= 16
        if kind != _KIND or not small or len(made.digest) != 32 or len(made.salt) < 8:
            raise ValueError(text)
        return made

    def __str__(self) -> str:
        numbers = f"{self.cost}${self.block}${self.lanes}"
        return f"{_KIND}${numbers}${self.salt.hex()}${self.digest.hex()}"

    def fits(self, password: str) -> bool:
        """Returns whether it is this password; takes as long either way."""
        found = _scrypt(password, self.salt, self.cost, self.block, self.lanes)
        return hmac.compare_digest(found, self.digest)


class Users:
    """Everybody who may come in.

    Args:
        secrets: hash of each name.
    """

    def __init__(self, known: Mapping[str, Secret]) -> None:
        self.names = tuple(known)
        self._known = dict(known)
        self._nobody = Secret.of(secrets.token_hex(16))

    async def check(self, name: str, password: str) -> bool:
        """Returns whether name and password fit; beside the server's loop, for it takes 50 ms.

        An unknown name takes as long as a wrong password.
        """
        if len(password) > _MAX_PASSWORD:
            return False
        secret = self._known.get(name, self._nobody)
        fits = await asyncio.to_thread(secret.fits, password)
        allowed = fits and name in self._known
        note("login", allowed=allowed, private={"name": f'"{name[:80]}"'})
        return allowed


def users(text: str | None, environment: Mapping[str, str] = os.environ) -> Users | None:
    """Returns who may come in, or None when nobody is named and there is no login.

    Args:
        text: "NAME:PASSWORD", or a file with such lines, whose passwords may be hashed.
        environment: `VQDQ_AUTH` may hold the same; used when `text` is None.

    Raises:
        UserError: a line is none, or a name stands twice.
    """
    where = "--auth"
    if text is None:
        text, where = environment.get(VARIABLE) or None, VARIABLE
    if text is None:
        return None
    path = Path(text)
    try:
        found = path.read_text(encoding="utf-8") if _is_file(path) else text
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("cannot be read.", where=str(path), remedy=_LINE) from error
    lines = [line.strip() for line in found.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    known: dict[str, Secret] = {}
    for line in lines or [""]:
        name, secret = _entry(line, where)
        if name in known:
            raise UserError(f'"{name}" stands twice.', where=where, remedy=_LINE)
        known[name] = secret
    return Users(known)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a password is no path
        return False


def _entry(line: str, where: str) -> tuple[str, Secret]:
    name, colon, password = line.partition(":")
    name = name.strip()
    if not colon or not name or not password or not name.isprintable():
        raise UserError("is not NAME:PASSWORD.", where=where, remedy=_LINE)
    if not password.startswith(f"{_KIND}$"):
        return name, Secret.of(password)
    try:
        return name, Secret.parse(password)
    except ValueError as error:
        raise UserError(f'the hash of "{name}" is damaged.', where=where, remedy=_LINE) from error


def _scrypt(password: str, salt: bytes, cost: int, block: int, lanes: int) -> bytes:
    room = 256 * cost * block * lanes + (1 << 20)
    return hashlib.scrypt(
        password.encode(), salt=salt, n=cost, r=block, p=lanes, maxmem=room, dklen=32
    )


if __name__ == "__main__":
    if len(sys.argv) != 2 or ":" in sys.argv[1] or not sys.argv[1].strip():
        sys.exit(__doc__)
    print(f"{sys.argv[1].strip()}:{Secret.of(getpass.getpass())}")

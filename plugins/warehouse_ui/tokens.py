"""Tokens for programs: each reads one warehouse as its owner may at that moment, or some of its tables.

They are in Airflow's metadata database, as hashes. A token is 256 random bits: nothing to guess, so SHA-256 is enough.
"""

import hashlib
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
from airflow.utils.session import create_session
from airflow.utils.sqlalchemy import UtcDateTime
from sqlalchemy import JSON, Column, Integer, MetaData, String, Table, delete, insert, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateTable

PREFIX = "elt_"
DAYS = (7, 30, 90, 365)
MOST = 50
# A use within this time after the last one is not written down.
_USED = timedelta(minutes=1)
# Expired ones are shown for this long.
_KEPT = timedelta(days=30)

_table = Table(
    "warehouse_token",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),
    Column("name", String(100), nullable=False),
    Column("owner", String(300), nullable=False),
    Column("warehouse", String(250), nullable=False),
    Column("scope", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("used_at", UtcDateTime),
)


class TokenError(Exception):
    """A token cannot be made; the message is for who asked for it."""


@dataclass(frozen=True)
class Token:
    """A token, without its text.

    Attributes:
        scope: schemas, and tables as `SCHEMA.TABLE`, that it reads; empty for all.
        used_at: to the minute; None if it has not been used.
    """

    id: int
    name: str
    warehouse: str
    scope: tuple[str, ...]
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None

    @property
    def expired(self) -> bool:
        """Whether it is too old to be accepted."""
        return self.expires_at <= datetime.now(UTC)


@dataclass(frozen=True)
class Login:
    """What a request with a token is: its owner as of now, and the token."""

    user: BaseUser
    token: Token


def make(session: Session, user: BaseUser, warehouse: str, name: str, scope: Sequence[str], days: int) -> str:
    """Make a token.

    Args:
        session: a session on Airflow's metadata.
        user: its owner.
        warehouse: the warehouse that it reads.
        name: what it is for.
        scope: see `Token`.
        days: how long it is valid.

    Returns:
        Its text, which is kept nowhere.

    Raises:
        TokenError: the name is in use, there are too many, or users of this login cannot have tokens.
    """
    _create_table()
    owner, now = _owner(user), datetime.now(UTC)
    if _current_user(owner) is None:
        raise TokenError("Tokens are for users of Airflow's simple login or of FAB, not for this one.")
    session.execute(delete(_table).where(_table.c.expires_at < now - _KEPT))
    own = tokens_of(session, user)
    if any(one.name == name and one.warehouse == warehouse for one in own):
        raise TokenError(f"There is a token named {name} already.")
    if len(own) >= MOST:
        raise TokenError(f"There are {MOST} tokens already. Revoke one first.")
    text = PREFIX + secrets.token_urlsafe(32)
    session.execute(
        insert(_table).values(
            hash=_hash(text),
            name=name,
            owner=owner,
            warehouse=warehouse,
            scope=list(scope),
            created_at=now,
            expires_at=now + timedelta(days=days),
        )
    )
    return text


def tokens_of(session: Session, user: BaseUser) -> list[Token]:
    """Return a user's tokens, newest first."""
    _create_table()
    rows: Any = session.execute(select(_table).where(_table.c.owner == _owner(user)).order_by(_table.c.id.desc()))
    return [_token(row) for row in rows]


def revoke(session: Session, user: BaseUser, token_id: int) -> bool:
    """Revoke one of a user's tokens; return whether there was one."""
    _create_table()
    own = (_table.c.id == token_id) & (_table.c.owner == _owner(user))
    found: Any = session.execute(delete(_table).where(own))
    return bool(found.rowcount)


def log_in(text: str) -> Login | None:
    """Return who a token is, or None: unknown, revoked, expired, or its owner may not log in any more."""
    _create_table()
    with create_session() as session:
        row: Any = session.execute(select(_table).where(_table.c.hash == _hash(text))).first()
    if row is None or (token := _token(row)).expired:
        return None
    user = _current_user(row.owner)
    if user is None:
        return None
    now = datetime.now(UTC)
    if token.used_at is None or now - token.used_at > _USED:
        with suppress(DBAPIError), create_session() as session:  # a busy database must not refuse a reader
            session.execute(update(_table).where(_table.c.id == token.id).values(used_at=now))
    return Login(user, token)


@cache
def _create_table() -> None:
    try:
        with create_session() as session:
            session.execute(CreateTable(_table, if_not_exists=True))
    except DBAPIError:  # another api-server has created it at the same moment
        with create_session() as session:
            session.execute(select(_table.c.id).limit(1))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _owner(user: BaseUser) -> str:
    """Return what names a user in this login: an id alone could later be another user's."""
    manager = get_auth_manager()
    return f"{type(manager).__name__}:{manager.serialize_user(user)['sub']}:{user.get_name()}"


def _current_user(owner: str) -> BaseUser | None:
    """Return a token's owner with today's role, or None if they cannot log in any more."""
    manager = get_auth_manager()
    kind, subject, _ = owner.split(":", 2)
    user: BaseUser | None = None
    if kind != type(manager).__name__:
        return None
    if isinstance(manager, SimpleAuthManager):
        user = next((one for one in manager.get_users() if one.username == subject), None)
    elif kind == "FabAuthManager":
        with suppress(ValueError):  # removed or deactivated
            user = manager.deserialize_user({"sub": subject})
    return user if user and _owner(user) == owner else None


def _token(row: Any) -> Token:
    return Token(row.id, row.name, row.warehouse, tuple(row.scope), row.created_at, row.expires_at, row.used_at)

"""Authentication: from a request's bearer token to the user that it stands for.

A token is a secret of which the server keeps only the SHA-256, or a JSON Web Token with
a trusted signature. Nothing here knows sessions; each route checks what a visitor may do.

    [[token]]                      # kode-lab token --user yeya  makes one
    user = "yeya"
    sha256 = "…64 hexadecimal digits…"
    operator = false               # may see the live page, the metrics and the agents

    [jwt]                          # optional
    secret_file = "jwt.secret"     # HS256, HS384, HS512; or public_key_file for the others
    algorithms = ["HS256"]
    issuer = "https://…"           # optional
    audience = "kode-lab"          # optional

Source: RFC 6750 (bearer tokens), RFC 7519 and RFC 8725 (JWT, and that the algorithm is the
verifier's choice); comparing keyed digests instead of secrets, so that time tells nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kode_lab.errors import InvalidKey, InvalidScenario
from kode_lab.key import SessionKey
from kode_lab.server.refusal import Rejected

__all__ = ["EVERY_USER", "Tokens", "Visitor", "new_token", "token_entry", "tokens_of"]

TOKEN_LIMIT_BYTES = 8_192
_SECRET_LEAST_BYTES = 32
_LEEWAY_S = 30
_SHARED = ("HS256", "HS384", "HS512")
_PUBLIC = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA")
_TOKEN_FIELDS = {"user": str, "sha256": str, "operator": bool}
_JWT_FIELDS = ("secret_file", "public_key_file", "algorithms", "issuer", "audience")


class Visitor(NamedTuple):
    """Who sent a request.

    Attributes:
        user_id: the user whose sessions they may use; None is every user's, if the server asks for
            no tokens.
        is_operator: may see what the whole server does.
    """

    user_id: str | None
    is_operator: bool

    def check_user(self, user_id: str) -> None:
        """Refuse another user's sessions, whether they exist or not.

        Raises:
            Rejected: they are another user's (403).
        """
        if self.user_id is not None and self.user_id != user_id:
            raise Rejected(403, "Forbidden", "this is not your session: use your own userId")

    def check_operator(self) -> None:
        """Refuse a visitor who may see only their own sessions.

        Raises:
            Rejected: the visitor is no operator (403).
        """
        if not self.is_operator:
            raise Rejected(403, "Forbidden", "this is for operators: use an operator's token")


EVERY_USER = Visitor(None, is_operator=True)


class Tokens:
    """The tokens that a server accepts."""

    def __init__(self, known: Iterable[tuple[bytes, Visitor]], jwt: _Jwt | None = None) -> None:
        # Looked up by a digest under a key that no client knows: how long that takes tells nothing.
        self._salt = os.urandom(32)
        self._known = {self._mixed(digest): (digest, visitor) for digest, visitor in known}
        self._jwt = jwt

    def visitor_of(self, headers: Iterable[tuple[bytes, bytes]]) -> Visitor:
        """Return who sent a request with these headers.

        Raises:
            Rejected: there is no token, more than one, or none that is known (401).
        """
        given = [value for name, value in headers if name == b"authorization"]
        if len(given) != 1:
            said = "is missing: send one header Authorization: Bearer TOKEN"
            raise _stranger(f"the token {said}" if not given else "two tokens were sent: send one")
        scheme, _, token = given[0].partition(b" ")
        token = token.strip()
        if scheme.lower() != b"bearer" or not 0 < len(token) <= TOKEN_LIMIT_BYTES:
            raise _stranger("the Authorization header is not usable: send Bearer TOKEN")
        digest = hashlib.sha256(token).digest()
        found = self._known.get(self._mixed(digest))
        if found is not None and hmac.compare_digest(found[0], digest):
            return found[1]
        if self._jwt is not None and token.count(b".") == 2:
            return self._jwt.visitor_of(token)
        raise _stranger("the token is not known: ask the server's operator for one")

    def _mixed(self, digest: bytes) -> bytes:
        return hmac.digest(self._salt, digest, "sha256")


class _Jwt(NamedTuple):
    """How signed tokens are checked."""

    key: Any
    algorithms: tuple[str, ...]
    issuer: str | None
    audience: str | None

    def visitor_of(self, token: bytes) -> Visitor:
        import jwt  # noqa: PLC0415 - only where signed tokens are in use

        try:
            claims = jwt.decode(
                token,
                self.key,
                algorithms=list(self.algorithms),
                issuer=self.issuer,
                audience=self.audience,
                leeway=_LEEWAY_S,
                options={"require": ["exp", "sub"], "verify_aud": self.audience is not None},
            )
            user_id = SessionKey.of(claims["sub"], "-").user_id
        except jwt.ExpiredSignatureError:
            raise _stranger("the token has expired: get a new one") from None
        except (jwt.InvalidTokenError, InvalidKey):
            raise _stranger("the token is not known: ask the server's operator for one") from None
        return Visitor(user_id, claims.get("kode_lab_operator") is True)


def new_token() -> tuple[str, str]:
    """Return a fresh token of 256 random bits, and the SHA-256 that the server keeps of it."""
    token = secrets.token_urlsafe(32)
    return token, hashlib.sha256(token.encode()).hexdigest()


def token_entry(user_id: str, digest: str, *, is_operator: bool) -> str:
    """Return the lines that a file of tokens needs for it."""
    quoted = json.dumps(SessionKey.of(user_id, "-").user_id)
    operator = "operator = true\n" if is_operator else ""
    return f'[[token]]\nuser = {quoted}\nsha256 = "{digest}"\n{operator}'


def tokens_of(path: Path) -> Tokens:
    """Return the tokens that a file lists.

    Raises:
        InvalidScenario: the file cannot be read, or says something that cannot be.
    """
    try:
        fields = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidScenario(f"the tokens in {path.name}: {error}: mend the file") from None
    try:
        unknown = sorted(fields.keys() - {"token", "jwt"})
        if unknown:
            raise ValueError(f"unknown field {unknown[0]!r}")  # noqa: TRY301 - one place to say it
        known = [_known(entry) for entry in fields.get("token", ())]
        jwt = _jwt(fields["jwt"], path.parent) if "jwt" in fields else None
        if not known and jwt is None:
            raise ValueError("it lists no [[token]] and has no [jwt]")  # noqa: TRY301 - as above
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise InvalidScenario(f"the tokens in {path.name}: {error}: mend the file") from None
    return Tokens(known, jwt)


def _known(entry: Mapping[str, Any]) -> tuple[bytes, Visitor]:
    for name, value in entry.items():
        kind = _TOKEN_FIELDS.get(name)
        if kind is None or not isinstance(value, kind):
            raise ValueError(f"[[token]] has user, sha256 (texts) and operator, not {name!r}")
    digest = bytes.fromhex(entry["sha256"])
    if len(digest) != hashlib.sha256().digest_size:
        raise ValueError("sha256 is 64 hexadecimal digits")
    user_id = SessionKey.of(entry["user"], "-").user_id
    return digest, Visitor(user_id, entry.get("operator", False))


def _jwt(fields: Mapping[str, Any], directory: Path) -> _Jwt:
    unknown = sorted(set(fields) - set(_JWT_FIELDS))
    if unknown:
        raise ValueError(f"[jwt] has {', '.join(_JWT_FIELDS)}, not {unknown[0]!r}")
    is_shared = "secret_file" in fields
    if is_shared == ("public_key_file" in fields):
        raise ValueError("[jwt] needs secret_file or public_key_file, not both")
    # A public key that is taken for a shared secret is a classic: the kinds never mix.
    allowed = _SHARED if is_shared else _PUBLIC
    algorithms = tuple(fields["algorithms"])
    if not algorithms or not set(algorithms) <= set(allowed):
        raise ValueError(f"[jwt] algorithms: choose of {', '.join(allowed)}")
    key = (directory / fields["secret_file" if is_shared else "public_key_file"]).read_bytes()
    if is_shared and len(key := key.strip()) < _SECRET_LEAST_BYTES:
        raise ValueError(f"the secret of [jwt] is too short: {_SECRET_LEAST_BYTES=}")
    if not is_shared:
        _check_public_key(key, algorithms)
    return _Jwt(key, algorithms, fields.get("issuer"), fields.get("audience"))


def _check_public_key(key: bytes, algorithms: tuple[str, ...]) -> None:
    import jwt  # noqa: PLC0415 - as above

    for name in algorithms:
        try:
            jwt.get_algorithm_by_name(name).prepare_key(key)
        except NotImplementedError:
            raise ValueError(f"{name} needs the package cryptography: install it") from None
        except jwt.InvalidKeyError as error:
            raise ValueError(f"public_key_file is no key for {name}: {error}") from None


def _stranger(message: str) -> Rejected:
    return Rejected(
        401, "Unauthenticated", message, headers={"WWW-Authenticate": 'Bearer realm="kode-lab"'}
    )

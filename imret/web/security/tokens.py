"""Tokens, cookies and the login page."""

from __future__ import annotations

import hashlib
import hmac
import re
from pathlib import Path
from urllib.parse import parse_qs

from imret.web.security.http import Scope

MIN_TOKEN_CHARS = 16


MAX_QUERY_BYTES = 16 << 10


LOGIN_BYTES = 4 << 10  # a form with one token


LOGIN_DELAY_S = 0.5  # what a wrong token costs; with 16 characters it is courtesy, not defence


SESSION_S = 30 * 24 * 3600  # how long a browser keeps the cookie; another token ends all sessions at once


_LOCAL_TARGET = re.compile(
    r"/(?!/)[!-\[\]-~]*"
)  # printable ASCII without the backslash, which browsers read as /


_LOGIN_PAGE = Path(__file__).parent.parent / "static" / "login.html"


_MESSAGE_MARK = "<!-- message -->"


def _token_fault(token: str | None) -> str | None:
    """Say what is wrong with a token, without printing it; None if nothing is."""
    if token is None:
        return None
    if len(token) < MIN_TOKEN_CHARS:
        return f"the token has {len(token)} characters, and needs at least {MIN_TOKEN_CHARS}"
    if not re.fullmatch(r"[!-~]+", token):
        return "the token may hold letters, digits and punctuation of ASCII only, and no blanks"
    return None


def _derive(token: bytes, purpose: bytes) -> bytes:
    """Return 64 hexadecimal digits that follow from the token and do not lead back to it."""
    return hmac.new(token, b"imret " + purpose, hashlib.sha256).hexdigest().encode()


def _local(scope: Scope) -> str:
    """Return where a login leads on to: the parameter next if that is an address here, else the page."""
    try:
        fields = parse_qs(scope.get("query_string", b"").decode("ascii"), max_num_fields=10)
    except ValueError:
        return "/"
    target = fields.get("next", ["/"])[0]
    # `//evil.example` and `/\evil.example` are other hosts to a browser.
    return target if _LOCAL_TARGET.fullmatch(target) else "/"

"""The token: whether a request carries it, and the login page that exchanges it for a session cookie.

A session has no state here: the cookie follows from the token, so another token ends all sessions at once.

Source: RFC 6750 (Bearer).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote

from imret.web.security.http import HTML, Headers, RefusedError, Scope, header_values, target_of
from imret.web.security.public_address import PublicAddress

if TYPE_CHECKING:
    from imret.web.security.body_limits import Exchange

MIN_TOKEN_CHARS = 16
LOGIN_BYTES = 4 << 10  # a form with one token
# What a wrong token costs, however it is shown; with 16 characters it is courtesy, not defence.
GUESS_DELAY_S = 0.5
SESSION_S = 30 * 24 * 3600  # how long a browser keeps the cookie
MAX_NEXT_CHARS = 16_000  # of the address that a login leads on to

# Printable ASCII without the backslash, which browsers read as /.
_LOCAL_TARGET = re.compile(r"\.?/(?!/)[!-\[\]-~]*")
_LOGIN_PAGE = Path(__file__).parent.parent / "static" / "login.html"
_MESSAGE_MARK = "<!-- message -->"
_AUTHENTICATE: Headers = [(b"www-authenticate", b'Bearer realm="imret"')]


def token_fault(token: str | None) -> str | None:
    """Say what is wrong with a token, without printing it; None if nothing is."""
    if token is None:
        return None
    if len(token) < MIN_TOKEN_CHARS:
        return f"the token has {len(token)} characters, and needs at least {MIN_TOKEN_CHARS}"
    if not re.fullmatch(r"[!-~]+", token):
        return "the token may hold letters, digits and punctuation of ASCII only, and no blanks"
    return None


class TokenGuard:
    """Knows who carries the token, and serves /login and /logout."""

    def __init__(self, token: str | None, *, public: PublicAddress) -> None:
        """Take the token; None asks for nothing.

        Args:
            token: At least 16 visible ASCII characters.
            public: The address that browsers use: what its redirects begin with.

        Raises:
            ValueError: If the token is shorter than 16 characters or could not stand in a header.
        """
        fault = token_fault(token)
        if fault:
            raise ValueError(fault)
        self._public = public
        self._token = None if token is None else token.encode("ascii")
        if self._token is not None:
            # Cookies are shared by all ports of a host: a name of its own keeps two servers' sessions apart.
            self.cookie = b"imret_" + _derive(self._token, b"cookie name")[:8]
            self._session = _derive(self._token, b"session")
            self._login_page = public.in_page(_LOGIN_PAGE.read_text(encoding="utf-8"))

    def admits(self, scope: Scope) -> bool:
        """Whether the request carries the token, or the cookie that the token was exchanged for."""
        if self._token is None:
            return True
        return any(map(self._is_token, _bearer_tokens(scope))) or any(
            hmac.compare_digest(given, self._session) for given in self._sessions(scope)
        )

    def _sessions(self, scope: Scope) -> Iterator[bytes]:
        """Yield what the request shows as the session."""
        for value in header_values(scope, b"cookie"):
            for pair in value.split(b";"):
                name, _, given = pair.strip().partition(b"=")
                if name == self.cookie:
                    yield given

    async def challenge(self, scope: Scope, exchange: Exchange) -> None:
        """Answer a request without the token: the page leads to the login, everything else is 401.

        One with a wrong token waits as it does at the login; whoever shows none, or the right one, does not.
        """
        if [*_bearer_tokens(scope), *self._sessions(scope)]:
            await asyncio.sleep(GUESS_DELAY_S)
        if scope["path"] != "/" or scope["method"] not in ("GET", "HEAD"):
            raise RefusedError(
                401,
                "this server asks for its token: send 'Authorization: Bearer TOKEN', or log in at "
                f"{self._public.root_path}/login",
                _AUTHENTICATE,
            )
        target = self._public.base + target_of(scope)
        if header_values(scope, b"sec-fetch-site")[:1] in ([b"cross-site"], [b"same-site"]):
            # A link from elsewhere (a chat, a mail): SameSite=Strict kept the cookie back, so we cannot know
            # who asks. Let our own page ask again: that request comes from here, and brings the cookie.
            page = (
                '<!doctype html><html lang="en"><meta charset="utf-8"><title>imret</title>'
                f'<meta http-equiv="refresh" content="0; url={html.escape(target)}">'
                f'<a href="{html.escape(target)}">Go on to imret</a></html>'
            )
            await exchange.answer(200, page.encode(), HTML)
            return
        after = quote(target, safe="")
        # Quoted it may be longer than an address may be; then the login leads to the bare page.
        if len(after) > MAX_NEXT_CHARS:
            after = self._public.base + "/"
        await exchange.redirect(f"{self._public.base}/login?next={after}")

    async def login(self, scope: Scope, exchange: Exchange) -> None:
        """Serve the login page, and exchange a token for a session cookie."""
        after = _next_target(scope) or self._public.base + "/"
        method = scope["method"]
        if method not in ("GET", "HEAD", "POST"):
            raise RefusedError(405, "/login takes GET and POST", [(b"allow", b"GET, HEAD, POST")])
        if self._token is None or (method != "POST" and self.admits(scope)):
            await exchange.redirect(after)
            return
        if method != "POST":
            await exchange.answer(200, self._login_page.encode(), HTML)
            return
        given = await _posted_token(scope, exchange)
        if given is None:
            return
        if not self._is_token(given):
            await asyncio.sleep(GUESS_DELAY_S)
            message = '<p class="error" role="alert">That is not the token of this server.</p>'
            page = self._login_page.replace(_MESSAGE_MARK, message)
            await exchange.answer(401, page.encode(), [*HTML, *_AUTHENTICATE])
            return
        await exchange.redirect(after, [self._set_cookie(scope, self._session, SESSION_S)])

    async def logout(self, scope: Scope, exchange: Exchange) -> None:
        """Take the cookie back from this browser; other browsers keep theirs."""
        if scope["method"] != "POST":
            raise RefusedError(405, "/logout takes POST", [(b"allow", b"POST")])
        if self._token is None:
            await exchange.redirect(self._public.base + "/")
            return
        await exchange.redirect(self._public.base + "/login", [self._set_cookie(scope, b"", 0)])

    def _is_token(self, given: bytes) -> bool:
        assert self._token is not None
        # Digests first: compare_digest takes as long as its arguments are long.
        return hmac.compare_digest(hashlib.sha256(given).digest(), hashlib.sha256(self._token).digest())

    def _set_cookie(self, scope: Scope, value: bytes, max_age_s: int) -> tuple[bytes, bytes]:
        # Without Path a browser keeps it for the folder of the address that it asked: below a proxy's path
        # it is not shown to what else the proxy serves, and the server need not know that path.
        cookie = b"%s=%s; Max-Age=%d; HttpOnly; SameSite=Strict" % (self.cookie, value, max_age_s)
        # Behind a proxy that ends TLS only the browser knows that the page came by https, and says so in
        # Origin, which no page can forge. X-Forwarded-Proto is not asked: anyone may send it.
        origins = header_values(scope, b"origin")
        is_https = scope.get("scheme") == "https" or (self._public.is_https and not origins)
        secure = is_https or any(o.lower().startswith(b"https://") for o in origins)
        return b"set-cookie", cookie + (b"; Secure" if secure else b"")


def _bearer_tokens(scope: Scope) -> Iterator[bytes]:
    """Yield what the request shows as the token in its header."""
    for value in header_values(scope, b"authorization"):
        scheme, _, given = value.strip().partition(b" ")
        if scheme.lower() == b"bearer":
            yield given.strip()


async def _posted_token(scope: Scope, exchange: Exchange) -> bytes | None:
    """Return what was typed on the login page; None if the client left meanwhile."""
    kind = b"".join(header_values(scope, b"content-type")).partition(b";")[0].strip().lower()
    if kind != b"application/x-www-form-urlencoded":
        raise RefusedError(415, "/login takes a form: application/x-www-form-urlencoded with the field token")
    body = await exchange.read()
    if body is None:
        return None
    try:
        fields = parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=10)
    except ValueError:
        raise RefusedError(400, "the login form cannot be read") from None
    return fields.get("token", [""])[-1].strip().encode("utf-8", "replace")


def _derive(token: bytes, purpose: bytes) -> bytes:
    """Return 64 hexadecimal digits that follow from the token and do not lead back to it."""
    return hmac.new(token, b"imret " + purpose, hashlib.sha256).hexdigest().encode()


def _next_target(scope: Scope) -> str | None:
    """Return where a login leads on to: the parameter next if that is an address here."""
    try:
        fields = parse_qs(scope.get("query_string", b"").decode("ascii"), max_num_fields=10)
    except ValueError:
        return None
    target = fields.get("next", [""])[0]
    # `//evil.example` and `/\evil.example` are other hosts to a browser.
    return target if _LOCAL_TARGET.fullmatch(target) else None

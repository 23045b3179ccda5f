"""Real reverse proxies, nginx and Caddy, with the configurations that docs/serve.md shows."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from imret.net import accepts_connections
from tests import ROOT
from tests.docs.pages import blocks
from tests.fakes.web_server import free_port

PATH = "/photos"

_NGINX = """\
daemon off;
pid {folder}/pid;
error_log {folder}/log warn;
{user}
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {site}
}}
"""


@dataclass(frozen=True)
class Proxy:
    """A proxy that is to run, and the address that browsers will know.

    Attributes:
        program: nginx or caddy.
        port: Where it listens.
        scheme: https, or http where `documented` was told so.
    """

    program: str
    port: int
    scheme: str

    @property
    def origin(self) -> str:
        return f"{self.scheme}://localhost:{self.port}"


def needed(program: str) -> str:
    """Return where a proxy's program is; skip the test loudly where it is not."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"needs {program}: apt install {'nginx-light' if program == 'nginx' else program}")
    return found


def documented(program: str) -> str:
    """Return the configuration that the page about `imret serve` shows for a proxy."""
    begins = {"nginx": "limit_conn_zone", "caddy": "nas.example"}[program]
    (text,) = [block.text for block in blocks(ROOT / "docs" / "serve.md") if block.text.startswith(begins)]
    return text


def a_proxy(program: str = "nginx", scheme: str = "https") -> Proxy:
    """Return a proxy at a free port."""
    needed(program)
    return Proxy(program, free_port(), scheme)


@contextmanager
def running(proxy: Proxy, folder: Path, *, upstream: int, site: str | None = None) -> Iterator[None]:
    """Run a proxy before what listens at the port `upstream` of this machine.

    Args:
        proxy: As `a_proxy` gave it.
        folder: For its files.
        upstream: The port of `imret serve`.
        site: The configuration, with the names and ports of the page; the one it shows where None.
    """
    site = documented(proxy.program) if site is None else site
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    if proxy.scheme == "https":
        _make_certificate(certificate, key)
    replaced = {
        "8750": str(upstream),
        "nas.example:8443": proxy.origin,
        "listen 8443": f"listen 127.0.0.1:{proxy.port}",
        "/etc/ssl/nas.example.pem": str(certificate),
        "/etc/ssl/nas.example.key": str(key),
        "nas.example": "localhost",
    }
    for shown, real in replaced.items():
        site = site.replace(shown, real)
    if proxy.program == "nginx":
        # Its workers would else be of a user who cannot enter the test's folders.
        user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
        (folder / "nginx.conf").write_text(_NGINX.format(folder=folder, user=user, site=site))
        command = [needed("nginx"), "-p", str(folder), "-e", str(folder / "log"), "-c", "nginx.conf"]
    else:
        options = "{\n    admin off\n    auto_https disable_redirects\n    skip_install_trust\n}\n"
        internal = site.replace("{\n", "{\n    tls internal\n", 1)
        (folder / "Caddyfile").write_text(options + internal)
        command = [needed("caddy"), "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]
    home = {name: str(folder) for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")}
    said = folder / "said"
    with said.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **home})
    try:
        deadline = time.monotonic() + 30
        while not _is_ready(proxy):
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(30)


def _is_ready(proxy: Proxy) -> bool:
    """Whether it answers; Caddy listens before it has made its certificate."""
    if not accepts_connections("127.0.0.1", proxy.port, timeout_s=1):
        return False
    if proxy.scheme == "http":
        return True
    trusting = ssl._create_unverified_context()
    try:
        with (
            socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as plain,
            trusting.wrap_socket(plain, server_hostname="localhost"),
        ):
            return True
    except OSError:  # ssl.SSLError is one
        return False


def _make_certificate(certificate: Path, key: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl, for a certificate: apt install openssl")
    what = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    whose = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", *what, *whose, *files], check=True, capture_output=True)

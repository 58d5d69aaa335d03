"""An OpenID Connect provider of the tests' own, on loopback: discovery, authorize, token and keys, and nobody types a password."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import secrets
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

CLIENT, SECRET = "studio", "studio-secret-of-the-tests"


class Provider:
    """It answers /authorize at once, in the name of the person whose claims `chosen` holds, and signs with RS256.

    `person` in the address of /authorize is not needed: a browser context is told apart by the cookie `person`, which a
    test sets for the provider's address, and whose value is a key of `people`.
    """

    def __init__(self, people: dict[str, dict[str, Any]]) -> None:
        self.people = people
        self.key = RSAKey.generate_key(2048, {"kid": "one", "use": "sig", "alg": "RS256"})
        self.codes: dict[str, tuple[str, str, str, str]] = {}
        self.age = 0.0
        """Seconds that a token says it is old."""
        provider = self

        class Answers(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.get(self)

            def do_POST(self) -> None:
                provider.token(self)

            def log_message(self, *said: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def get(self, request: http.server.BaseHTTPRequestHandler) -> None:
        url = urlsplit(request.path)
        if url.path == "/.well-known/openid-configuration":
            self.answer(request, self.metadata())
        elif url.path == "/jwks":
            self.answer(request, {"keys": [self.key.as_dict(private=False)]})
        elif url.path == "/authorize":
            self.authorize(request, {n: v[0] for n, v in parse_qs(url.query).items()})
        elif url.path == "/end":
            self.redirect(request, parse_qs(url.query)["post_logout_redirect_uri"][0])
        else:
            request.send_error(404)

    def metadata(self) -> dict[str, Any]:
        return {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/jwks",
            "end_session_endpoint": f"{self.url}/end",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
        }

    def authorize(self, request: http.server.BaseHTTPRequestHandler, asked: dict[str, str]) -> None:
        cookies = dict(
            part.strip().split("=", 1) for part in (request.headers["Cookie"] or "").split(";") if "=" in part
        )
        code = secrets.token_urlsafe(16)
        assert asked["client_id"] == CLIENT and asked["response_type"] == "code"
        self.codes[code] = (
            cookies["person"],
            asked["redirect_uri"],
            asked.get("nonce", ""),
            asked.get("code_challenge", ""),
        )
        self.redirect(
            request, f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state']})}"
        )

    def token(self, request: http.server.BaseHTTPRequestHandler) -> None:
        form = {
            n: v[0]
            for n, v in parse_qs(request.rfile.read(int(request.headers["Content-Length"])).decode()).items()
        }
        person, redirect_uri, nonce, challenge = self.codes.pop(form["code"])
        basic = base64.b64decode((request.headers["Authorization"] or "").removeprefix("Basic ")).decode()
        assert basic == f"{CLIENT}:{SECRET}" and form["redirect_uri"] == redirect_uri
        if challenge:
            digest = hashlib.sha256(form["code_verifier"].encode()).digest()
            assert base64.urlsafe_b64encode(digest).decode().rstrip("=") == challenge
        now = int(time.time() - self.age)
        claims = {"iss": self.url, "aud": CLIENT, "sub": person, "iat": now, "exp": int(time.time()) + 600}
        claims |= {"nonce": nonce} if nonce else {}
        signed = jwt.encode({"alg": "RS256", "kid": "one"}, claims | self.people[person], self.key)
        self.answer(
            request, {"access_token": "x", "token_type": "Bearer", "expires_in": 600, "id_token": signed}
        )

    @staticmethod
    def answer(request: http.server.BaseHTTPRequestHandler, found: dict[str, Any]) -> None:
        body = json.dumps(found).encode()
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    @staticmethod
    def redirect(request: http.server.BaseHTTPRequestHandler, to: str) -> None:
        request.send_response(302)
        request.send_header("Location", to)
        request.send_header("Content-Length", "0")
        request.end_headers()


def secrets_file(home: Path, provider: Provider, studio: str, roles: str) -> None:
    """The login section of a studio at this address, private, with these roles behind it."""
    folder = home / ".streamlit"
    folder.mkdir(exist_ok=True)
    file = folder / "secrets.toml"
    file.touch(0o600)
    auth = {
        "redirect_uri": f"{studio}/oauth2callback",
        "cookie_secret": secrets.token_hex(32),
        "client_id": CLIENT,
        "client_secret": SECRET,
        "server_metadata_url": f"{provider.url}/.well-known/openid-configuration",
    }
    lines = ["[auth]", *(f"{name} = {json.dumps(value)}" for name, value in auth.items()), roles]
    file.write_text("\n".join(lines), encoding="utf-8")

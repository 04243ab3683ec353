"""One kept TLS session to the API, and a daemon thread for each blocking request.

python-digitalocean's BaseAPI brings the end point and the objects built on it (Droplet); what it
does badly is mended here, in its one home: POST leaves the session, there is no time-out, and a
status is lost (facts.md). Guarantees: connect and read time-outs on every request, no redirect is
followed (a token never travels on), certificates are always verified, a request that overstays
its time is abandoned together with its session: the next one starts on a fresh connection, and the
abandoned one sends nothing once its connection is up at last (a slow resolver, a dead address).
Proxies and netrc of the environment are not used: netrc would replace the token.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import requests
import urllib3
from digitalocean.baseapi import BaseAPI
from requests.adapters import HTTPAdapter

from do_failover import __version__
from do_failover.do_api.answers import read_error
from do_failover.errors import ConfigError, TemporaryError
from do_failover.threads import KeptThread, run_in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from do_failover.token import TokenSource

T = TypeVar("T")

CONNECT_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 10.0
_GRACE_S = 0.25
_PREPARED_MOST = 64
_CALLS_KEPT = 1000  # a daemon lives for months


@dataclass(frozen=True, slots=True)
class Call:
    """One request as it was made, for the report."""

    method: str
    path: str
    status: int | None
    duration_s: float


class _Adapter(HTTPAdapter):
    """Connections that, once abandoned, close instead of sending."""

    has_begun = False  # whether the last request began to leave; before that, nothing can have landed

    def __init__(self, abandoned: threading.Event) -> None:
        super().__init__()

        adapter = self

        class Connection(urllib3.connection.HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                if abandoned.is_set():
                    self.close()
                    msg = "abandoned before it was sent"
                    raise ConnectionAbortedError(msg)

            def request(self, *arguments: Any, **more: Any) -> None:  # noqa: ANN401 - urllib3's own
                adapter.has_begun = True
                super().request(*arguments, **more)

        class Pool(urllib3.connectionpool.HTTPSConnectionPool):
            ConnectionCls = Connection

        self.poolmanager.pool_classes_by_scheme = {**self.poolmanager.pool_classes_by_scheme, "https": Pool}


class Transport(BaseAPI):  # type: ignore[misc] # python-digitalocean has no types
    """python-digitalocean's base with our session, time-outs and errors."""

    def __init__(self, *, end_point: str, tokens: TokenSource, ca_file: str | None) -> None:
        """No connection is made yet."""
        super().__init__(end_point=end_point.rstrip("/") + "/", token="")
        self._tokens = tokens
        self._first_token = 0
        self.is_nearly_limited = False
        self._verify: str | bool = ca_file or True
        self._budget_s = READ_TIMEOUT_S
        self.calls: deque[Call] = deque(maxlen=_CALLS_KEPT)
        self.call_count = 0
        self._prepared: dict[tuple[str, str, str], requests.PreparedRequest] = {}
        self._abandoned = threading.Event()
        self._pid = os.getpid()
        self._thread = KeptThread()
        self._session = self._open_session()

    def _open_session(self) -> requests.Session:
        session = requests.Session()
        session.mount("https://", _Adapter(self._abandoned))
        session.trust_env = False
        session.headers["User-Agent"] = f"do-failover/{__version__} python-digitalocean requests/{requests.__version__}"
        return session

    def send(self, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        """Send one request and return the body of a 2xx. Blocking; raises as in answers.py.

        A token that is refused (401) or at its limit (429) is followed by the next one at once: neither had an effect.
        """
        session, abandoned = self._session, self._abandoned  # what comes after a time-out is another call's
        tokens = self._tokens.read()
        limited: requests.Response | None = None
        for number in range(len(tokens)):
            if abandoned.is_set():
                msg = f"{method} {path}: given up before it was sent"
                raise TemporaryError(msg, kind="timeout")
            token = tokens[(self._first_token + number) % len(tokens)]
            answer = self._request(session, method, path, body, token)
            if answer.status_code not in {401, 429}:
                break
            if answer.status_code == 429 and limited is None:  # noqa: PLR2004 - HTTP
                limited = answer
        else:
            number = 0
            answer = limited if limited is not None else answer  # a limit passes with time, whatever the other tokens are
        self._first_token = (self._first_token + number) % len(tokens)
        self.is_nearly_limited = _is_nearly_limited(answer.headers)
        if not 200 <= answer.status_code < 300:  # noqa: PLR2004 - HTTP
            raise read_error(method, path, answer.status_code, answer.headers, answer.content)
        return answer.content

    def prepare(self, method: str, path: str, body: dict[str, Any] | None = None) -> requests.PreparedRequest:
        """Return the request without the token, built once: building takes as long as sending does."""
        key = (method, path, repr(body))
        if key not in self._prepared:
            if len(self._prepared) >= _PREPARED_MOST:
                self._prepared.clear()
            self._prepared[key] = self._session.prepare_request(requests.Request(method, self.end_point + path, json=body))
        return self._prepared[key]

    def _check_ca_file(self) -> None:
        if not isinstance(self._verify, str):
            return
        try:
            with Path(self._verify).open("rb") as file:
                file.read(1)
        except OSError as error:
            msg = (
                f"digitalocean.ca_file {self._verify} cannot be read ({error.strerror}): "
                f"the API's certificate can't be verified, and nothing is sent"
            )
            raise ConfigError(msg, kind="ca_file") from None

    def _request(self, session: requests.Session, method: str, path: str, body: dict[str, Any] | None, token: str) -> requests.Response:
        started = time.monotonic()
        status: int | None = None
        adapter = session.get_adapter(self.end_point)
        if isinstance(adapter, _Adapter):
            adapter.has_begun = False
        try:
            request = self.prepare(method, path, body).copy()
            request.headers["Authorization"] = f"Bearer {token}"  # at the last moment, and nowhere else
            answer = session.send(
                request,
                timeout=(min(CONNECT_TIMEOUT_S, self._budget_s), min(READ_TIMEOUT_S, self._budget_s)),
                allow_redirects=False,
                verify=self._verify,
            )
            status = answer.status_code
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            self._check_ca_file()  # only now: a connection that stands was verified when it was made
            has_begun = adapter.has_begun if isinstance(adapter, _Adapter) else True
            raise _explain_network(method, path, error, has_begun=has_begun) from None
        finally:
            self.call_count += 1
            self.calls.append(Call(method, path, status, time.monotonic() - started))
        return answer

    def get_data(self, url: str, type: str = "GET", params: dict[str, Any] | None = None) -> Any:  # noqa: A002, ANN401 - the library's signature
        """Serve python-digitalocean's own objects by the same session and errors."""
        import msgspec  # noqa: PLC0415 - only Droplets come this way

        body = self.send(type, url, params if type != "GET" else None)
        try:
            return msgspec.json.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            msg = f"{type} {url}: the API's answer is not JSON: {error}"
            raise TemporaryError(msg, kind="garbled") from None

    async def call(self, function: Callable[[], T], timeout_s: float) -> T:
        """Run a blocking function of this transport in a thread, for at most that long."""
        if self._pid != os.getpid():  # a fork: parent and child must not share a connection
            self._pid, self._session, self._thread = os.getpid(), self._open_session(), KeptThread()
        self._budget_s = max(0.05, timeout_s)
        try:
            # Not wait_for: Python 3.11's swallows a cancel that comes in the turn of the result.
            async with asyncio.timeout(self._budget_s + _GRACE_S):
                return await run_in_thread(function, self._thread)
        except TimeoutError:
            self._abandoned.set()
            self._abandoned = threading.Event()
            self._session = self._open_session()
            self._thread.close()  # it ends with the abandoned call
            msg = f"the API did not finish its answer within {timeout_s:.1f} s; it may be overloaded or unreachable from here"
            raise TemporaryError(msg, kind="timeout", may_have_landed=True) from None

    def close(self) -> None:
        """Close the kept connection."""
        self._session.close()
        self._thread.close()


def _is_nearly_limited(headers: Mapping[str, str]) -> bool:
    """Tell whether less than a fifth of the token's hourly calls is left."""
    try:
        return int(headers["ratelimit-remaining"]) * 5 < int(headers["ratelimit-limit"])
    except (KeyError, ValueError):
        return False


def _explain_network(method: str, path: str, error: Exception, *, has_begun: bool) -> TemporaryError:
    """Say what a failure below HTTP means. The library's own text may hold headers: it isn't repeated."""
    landed = method != "GET" and has_begun
    if isinstance(error, requests.exceptions.SSLError):
        what, kind, landed = (
            "TLS failed: the certificate or the handshake was refused; check ca_file and the clock",
            "tls",
            False,
        )
    elif isinstance(error, requests.exceptions.ConnectTimeout) or (isinstance(error, requests.exceptions.Timeout) and not has_begun):
        what, kind, landed = "no TLS connection to the API in time", "timeout", False
    elif isinstance(error, requests.exceptions.ReadTimeout):
        what, kind = "the API accepted the request and did not answer in time", "timeout"
    elif error.args and isinstance(error.args[0], urllib3.exceptions.ReadTimeoutError):
        what, kind = "the API began its answer and did not finish it in time", "timeout"
    elif isinstance(error, requests.exceptions.ConnectionError):
        what, kind = "the connection to the API failed: name not resolved, refused, or cut", "network"
    else:
        what, kind = f"the request failed ({type(error).__name__})", "network"
    return TemporaryError(f"{method} {path}: {what}", kind=kind, may_have_landed=landed)

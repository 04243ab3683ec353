"""One kept TLS session to the API, and a daemon thread for each blocking request.

python-digitalocean's BaseAPI brings the end point and the objects built on it (Droplet); what it
does badly is mended here, in its one home: POST leaves the session, there is no time-out, and a
status is lost (facts.md). Guarantees: connect and read time-outs on every request, no redirect is
followed (a token never travels on), certificates are always verified, a request that overstays
its time is abandoned together with its session, so that the next one starts on a fresh connection.
Proxies and netrc of the environment are not used: netrc would replace the token.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import requests
from digitalocean.baseapi import BaseAPI

from do_failover import __version__
from do_failover.do_api.answers import read_error
from do_failover.errors import TemporaryError

if TYPE_CHECKING:
    from collections.abc import Callable

    from do_failover.token import TokenSource

T = TypeVar("T")

CONNECT_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 10.0
_GRACE_S = 0.25


@dataclass(frozen=True, slots=True)
class Call:
    """One request as it was made, for the report."""

    method: str
    path: str
    status: int | None
    duration_s: float


class _Auth(requests.auth.AuthBase):
    """Puts the token into the header at the last moment, and nowhere else."""

    def __init__(self, tokens: TokenSource) -> None:
        self._tokens = tokens

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._tokens.read()}"
        return request


class Transport(BaseAPI):  # type: ignore[misc] # python-digitalocean has no types
    """python-digitalocean's base with our session, time-outs and errors."""

    def __init__(self, *, end_point: str, tokens: TokenSource, ca_file: str | None) -> None:
        """No connection is made yet."""
        super().__init__(end_point=end_point.rstrip("/") + "/", token="")
        self._auth = _Auth(tokens)
        self._verify: str | bool = ca_file or True
        self._budget_s = READ_TIMEOUT_S
        self.calls: list[Call] = []
        self._session = self._open_session()

    def _open_session(self) -> requests.Session:
        session = requests.Session()
        session.trust_env = False
        session.auth = self._auth
        session.headers["User-Agent"] = f"do-failover/{__version__} python-digitalocean requests/{requests.__version__}"
        return session

    def send(self, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        """Send one request and return the body of a 2xx. Blocking; raises as in answers.py."""
        started = time.monotonic()
        status: int | None = None
        try:
            answer = self._session.request(
                method,
                self.end_point + path,
                json=body,
                timeout=(min(CONNECT_TIMEOUT_S, self._budget_s), min(READ_TIMEOUT_S, self._budget_s)),
                allow_redirects=False,
                verify=self._verify,
            )
            status = answer.status_code
        except (requests.RequestException, OSError) as error:
            raise _explain_network(method, path, error) from None
        finally:
            self.calls.append(Call(method, path, status, time.monotonic() - started))
        if not 200 <= status < 300:  # noqa: PLR2004 - HTTP
            raise read_error(method, path, status, answer.headers, answer.content)
        return answer.content

    def get_data(self, url: str, type: str = "GET", params: dict[str, Any] | None = None) -> Any:  # noqa: A002, ANN401 - the library's signature
        """Serve python-digitalocean's own objects by the same session and errors."""
        import msgspec  # noqa: PLC0415 - only Droplets come this way

        body = self.send(type, url, params if type != "GET" else None)
        try:
            return msgspec.json.decode(body)
        except msgspec.MsgspecError as error:
            msg = f"{type} {url}: the API's answer is not JSON: {error}"
            raise TemporaryError(msg, kind="garbled") from None

    async def call(self, function: Callable[[], T], timeout_s: float) -> T:
        """Run a blocking function of this transport in a thread, for at most that long."""
        self._budget_s = max(0.05, timeout_s)
        try:
            return await asyncio.wait_for(_run_in_thread(function), self._budget_s + _GRACE_S)
        except TimeoutError:
            self._session = self._open_session()
            msg = f"the API did not finish its answer within {timeout_s:.1f} s; it may be overloaded or unreachable from here"
            raise TemporaryError(msg, kind="timeout", may_have_landed=True) from None

    def close(self) -> None:
        """Close the kept connection."""
        self._session.close()


def _explain_network(method: str, path: str, error: Exception) -> TemporaryError:
    """Say what a failure below HTTP means. The library's own text may hold headers: it isn't repeated."""
    landed = method != "GET"
    if isinstance(error, requests.exceptions.SSLError):
        what, kind, landed = (
            "TLS failed: the certificate or the handshake was refused; check ca_file and the clock",
            "tls",
            False,
        )
    elif isinstance(error, requests.exceptions.ConnectTimeout):
        what, kind, landed = "no connection to the API in time", "timeout", False
    elif isinstance(error, requests.exceptions.ReadTimeout):
        what, kind = "the API accepted the request and did not answer in time", "timeout"
    elif isinstance(error, requests.exceptions.ConnectionError):
        what, kind = "the connection to the API failed: name not resolved, refused, or cut", "network"
    else:
        what, kind = f"the request failed ({type(error).__name__})", "network"
    return TemporaryError(f"{method} {path}: {what}", kind=kind, may_have_landed=landed)


async def _run_in_thread(function: Callable[[], T]) -> T:
    """Run in a daemon thread: unlike an executor's, it never holds up the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type] # None only beside an error

    def work() -> None:
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - handed to the waiting coroutine, whole
            _post(loop, settle, None, error)
        else:
            _post(loop, settle, result, None)

    threading.Thread(target=work, daemon=True, name="do-api").start()
    return await future


def _post(loop: asyncio.AbstractEventLoop, settle: Callable[..., None], *values: object) -> None:
    try:
        loop.call_soon_threadsafe(settle, *values)
    except RuntimeError:
        return  # the loop has ended: nobody waits any more

"""Every error that do-failover raises on purpose, and what each means for the caller.

    FailoverError                    has `kind` (for machines), a message (for people), an exit code
    ├─ TemporaryError                1   worth another try; `retry_after_s` when the API named a time
    ├─ PermanentError                1   another try cannot help in this round
    │  ├─ ConfigError                6   the configuration or an argument of keepalived's is unusable
    │  ├─ RefusedError               4   token or capability refused
    │  ├─ MissingProgramError        5   a needed program or package is missing
    │  └─ NotOwnerError              7   this Droplet is not the owner, and the step needs that
    ├─ PeerError                     10  one peer failed: `outcome` says which row that is (unreachable, refused)
    ├─ DeadlineError                 1   the round's deadline passed; carries the last cause
    └─ SupersededError               11  a newer event (or SIGTERM) ended this failover
       └─ InterruptedByPersonError   130 Ctrl-C did

A message says what happened, what it means and what to do. Partial failure (a peer) is a row of
the report, not an exception. Nothing here ever holds a token.
"""

from __future__ import annotations


class FailoverError(Exception):
    """The root: never raised itself."""

    kind = "error"
    exit_code = 1

    def __init__(self, message: str, *, kind: str | None = None, request_id: str | None = None) -> None:
        """Keep the operator's sentence, the machine's word for it, and the API's request id."""
        super().__init__(message)
        self.message = message
        self.kind = kind or type(self).kind
        self.request_id = request_id


class TemporaryError(FailoverError):
    """Worth another try, after `retry_after_s` when that is not None."""

    kind = "temporary"

    def __init__(
        self,
        message: str,
        *,
        kind: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
        may_have_landed: bool = False,
    ) -> None:
        """`may_have_landed`: the request may have had its effect although we got no answer."""
        super().__init__(message, kind=kind, request_id=request_id)
        self.retry_after_s = retry_after_s
        self.may_have_landed = may_have_landed


class PermanentError(FailoverError):
    """Another try cannot help in this round."""

    kind = "permanent"


class ConfigError(PermanentError):
    """The configuration, or what keepalived passed, is unusable; `problems` has one sentence each."""

    kind = "configuration"
    exit_code = 6

    def __init__(self, *problems: str, kind: str | None = None) -> None:
        """Take all problems at once: an operator mends them in one go."""
        super().__init__("\n".join(problems), kind=kind)
        self.problems = problems


class RefusedError(PermanentError):
    """The token or a capability was refused."""

    kind = "refused"
    exit_code = 4


class MissingProgramError(PermanentError):
    """A program or package that is needed is not installed."""

    kind = "missing_program"
    exit_code = 5


class NotOwnerError(PermanentError):
    """The API says that another Droplet, or none, owns the reserved IP."""

    kind = "not_owner"
    exit_code = 7


class PeerError(FailoverError):
    """One peer could not be reached or used. It ends that peer's row and nothing else (I7).

    `kind` is one of: unreachable (network, time-out, cut connection), refused (key not accepted),
    host_key (unknown or changed), command (the remote command failed or ran too long).
    """

    kind = "unreachable"
    exit_code = 10


class DeadlineError(FailoverError):
    """The round's deadline passed. The message names the last cause."""

    kind = "deadline"


class SupersededError(FailoverError):
    """A newer event, or SIGTERM, ended this failover."""

    kind = "superseded"
    exit_code = 11


class InterruptedByPersonError(SupersededError):
    """A person's Ctrl-C ended it."""

    kind = "interrupted"
    exit_code = 130

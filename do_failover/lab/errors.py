"""The lab's own errors, under the project's one tree.

FailoverError
└─ LabError          1   the lab could not do what was asked: what happened and, where known, the evidence
   └─ NotHereError   4   labs need Linux and root
"""

from __future__ import annotations

from do_failover.errors import FailoverError


class LabError(FailoverError):
    """Something in the lab did not work, or did not happen in time."""

    kind = "lab"


class NotHereError(LabError):
    """This machine or this user cannot have a lab."""

    kind = "not_here"
    exit_code = 4

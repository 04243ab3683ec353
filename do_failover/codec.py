"""The JSON form of a FailoverReport: what `-o json` prints and the history keeps.

Guarantees: the field names are those of the model, which are the contract's; `schema` comes first; what
`encode_report` wrote, `decode_report` reads back as an equal value. Text that is not Unicode (keepalived hands over a
name in any bytes) is encoded with U+FFFD in its place rather than not at all.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from do_failover.model import FailoverReport

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEMA = 1
_SURROGATE = re.compile("[\ud800-\udfff]")


class _Schema(msgspec.Struct):
    schema: int


def encode_report(report: FailoverReport) -> bytes:
    """Return one JSON object on one line, without a line end, in UTF-8."""
    fields = msgspec.to_builtins(report)
    document = {"schema": fields.pop("schema"), **fields}
    try:
        return msgspec.json.encode(document)
    except UnicodeEncodeError:
        return msgspec.json.encode(_replace_surrogates(document))


def encode_reports(reports: Sequence[FailoverReport], worst: FailoverReport) -> bytes:
    """Return several reports of one event (an instance with more than one reserved IP) as one JSON object."""
    head = b'"schema":%d,"outcome":"%s","exit_code":%d' % (SCHEMA, worst.outcome.encode(), worst.exit_code)
    return b'{%s,"reports":[%s]}' % (head, b",".join(encode_report(report) for report in reports))


def decode_report(data: bytes) -> FailoverReport:
    """Read one back. Unknown fields are ignored; anything else that does not fit is a ValueError saying where."""
    try:
        schema = msgspec.json.decode(data, type=_Schema).schema
        if schema != SCHEMA:
            msg = f"schema {schema} is not known to this version, which reads {SCHEMA}"
            raise ValueError(msg)
        return msgspec.json.decode(data, type=FailoverReport)
    except (msgspec.MsgspecError, RecursionError) as error:
        msg = f"not a failover report: {error}"
        raise ValueError(msg) from None


def _replace_surrogates(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_replace_surrogates(key): _replace_surrogates(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replace_surrogates(item) for item in value]
    return value

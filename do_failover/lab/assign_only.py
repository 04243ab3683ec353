"""The control's notify script: on MASTER it moves the reserved IP, and does nothing for the peers.

It does what the tutorials' scripts do, with the standard library only: ask the metadata service
whether a reserved IP is here already, and if not, POST one assign. It follows nothing and heals nobody.
"""

from __future__ import annotations

import json
import ssl
import sys
import urllib.request
from pathlib import Path

TIMEOUT_S = 5


def main(api_url: str, metadata_url: str, reserved_ip: str) -> None:
    """Assign `reserved_ip` to this Droplet unless it is here."""
    family, collection = ("ipv6", "reserved_ipv6") if ":" in reserved_ip else ("ipv4", "reserved_ips")
    if _read(f"{metadata_url}/reserved_ip/{family}/active") == "true":
        print("the reserved IP is here already")  # noqa: T201  to its log
        return
    droplet_id = int(_read(f"{metadata_url}/id"))
    request = urllib.request.Request(  # noqa: S310  the lab's own URL
        f"{api_url}{collection}/{reserved_ip}/actions",
        data=json.dumps({"type": "assign", "droplet_id": droplet_id}).encode(),
        headers={
            "Authorization": f"Bearer {Path('/run/lab/token').read_text(encoding='ascii').strip()}",
            "Content-Type": "application/json",
        },
    )
    context = ssl.create_default_context(cafile="/run/lab/ca.pem")
    with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context) as response:  # noqa: S310  see above
        print(f"assign {reserved_ip} to {droplet_id}: {response.status}")  # noqa: T201  to its log


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:  # noqa: S310  the lab's own URL
        text: str = response.read().decode("ascii")
        return text


if __name__ == "__main__":
    main(*sys.argv[1:])

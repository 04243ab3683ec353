"""What people run today, as scripts: the same steps as the published ones, in our own words. Pure.

tutorial    DigitalOcean's tutorials of keepalived with a floating IP: a shell script asks the metadata service twice (id, active),
            and a Python script with requests POSTs
curl        one metadata request and one POST, by bash and curl
following   one POST by Python with requests, and a GET of its action every second until that has ended
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Where:
    """Where the API is, and what for."""

    api_url: str
    metadata_url: str
    ca_file: str
    token: str
    reserved_ip: str
    python: str


def write_tutorial_assign(where: Where) -> str:
    """Write the Python script that the shell script calls: IP and Droplet id are its arguments."""
    return f"""\
import json
import os
import sys
import requests
ip, droplet = sys.argv[1], sys.argv[2]
answer = requests.post(
    "{where.api_url}floating_ips/" + ip + "/actions",
    headers={{"Content-type": "application/json", "Authorization": "Bearer " + os.environ["DO_TOKEN"]}},
    data=json.dumps({{"type": "assign", "droplet_id": int(droplet)}}),
    verify="{where.ca_file}",
)
print(answer.status_code)
sys.exit(0 if answer.status_code == 201 else 1)
"""


def write_tutorial(where: Where, assign_script: str) -> str:
    """Write the notify_master script."""
    return f"""\
#!/bin/bash
export DO_TOKEN='{where.token}'
IP='{where.reserved_ip}'
ID=$(curl -s {where.metadata_url}/id)
ACTIVE=$(curl -s {where.metadata_url}/floating_ip/ipv4/active)
if [ "$ACTIVE" = "false" ]; then
    n=0
    while [ $n -lt 10 ]; do
        {shlex.join([where.python, assign_script])} $IP $ID && break
        n=$((n + 1))
        sleep 3
    done
fi
"""


def write_curl(where: Where) -> str:
    """Write the shortest script."""
    return f"""\
#!/bin/bash
ID=$(curl -s {where.metadata_url}/id)
curl -s --cacert {where.ca_file} -X POST -H 'Content-Type: application/json' -H 'Authorization: Bearer {where.token}' \\
    -d "{{\\"type\\": \\"assign\\", \\"droplet_id\\": $ID}}" {where.api_url}reserved_ips/{where.reserved_ip}/actions >/dev/null
"""


def write_following(where: Where) -> str:
    """Write a script that also waits for its action: it asks every second, as doctl's --wait and most libraries do."""
    return f"""\
import time
import requests
droplet = int(requests.get("{where.metadata_url}/id").text)
session = requests.Session()
session.headers["Authorization"] = "Bearer {where.token}"
actions = "{where.api_url}reserved_ips/{where.reserved_ip}/actions"
action = session.post(actions, json={{"type": "assign", "droplet_id": droplet}}, verify="{where.ca_file}").json()["action"]
while action["status"] == "in-progress":
    time.sleep(1)
    action = session.get(actions + "/" + str(action["id"]), verify="{where.ca_file}").json()["action"]
"""


def write_bare_python(where: Where, modules: Sequence[str]) -> str:
    """Write a Python program that imports these modules and sends the same POST, and does nothing else."""
    imports = "".join(f"import {module}\n" for module in modules)
    return f"""\
{imports}import requests
requests.Session().post(
    "{where.api_url}reserved_ips/{where.reserved_ip}/actions",
    json={{"type": "assign", "droplet_id": 2}}, headers={{"Authorization": "Bearer {where.token}"}}, verify="{where.ca_file}",
)
"""

"""do-failover: moves a DigitalOcean reserved IP and proves that every peer noticed.

    drivers
      __main__      python -m do_failover
      cli/          click commands, one file a group; exit codes; only home of click and rich
      daemon/       resident: hears, supersedes, settles, guards, refreshes; the state table
      fanout        the peers: listed and discovered, merged, each with its source
      failover      the story: steps 2-6 in order under one deadline, and its rounds
      preflight     what would fail tonight, each check on its own
      heal          one peer's part of the story
    steps, in the flow's order (never import each other)
      event         one keepalived notify becomes a NotifyEvent
      decision      a table from (event, owner) to one Decision with a reason
      assign        the reserved IP becomes the target's; only the owner read at the end counts
      announce      gratuitous ARP and unsolicited NA, and directed ARP/NS to each peer on the link
      refresh       what peers run over SSH, and how their answers are read
      verify        the witness of what arrives here, and what the evidence means
      report        one FailoverReport: text, one log line
    edges (one outside thing each; never import each other)
      do_api/       reserved IPs, Droplets, actions; only home of python-digitalocean and requests
      do_metadata   169.254.169.254: who and where am I
      ssh/          connections to peers, kept open; only home of asyncssh
      tree/         the same through gateways, for many thousands; only home of ClusterShell
      frames        ARP and NS/NA frame bytes (pure)
      echo          the pattern that names a run and a peer in an echo request or first on a TCP connection (pure)
      packets       raw sockets: send frames, listen as witness
      neigh         parses `ip neigh` and `ip route get` (pure)
      iproute       asks this machine's kernel by `ip`
      discovery     the Droplets of a tag, asked of the API and kept on disk
      daemon_lock   whether a daemon lives here
      claims        whose turn it is: the newest event, the one running failover
      history       appends and reads failover records
    vocabulary
      retry         the one retry policy: deadline, jitter, wake-up; only home of tenacity
      config        TOML -> frozen Config; reports all problems at once
      peer_words    the lines between us and the peers' forced command
      token         where the API token comes from; peerlist: the fan-out list
      codec         the JSON of a report
      whole_file    a file replaced as a whole
      ownership     what root writes belongs to the directory's owner
      clock, mandate  time, and the right to act, as parameters
      model, errors   frozen dataclasses and enums; the error tree
    lab/            the rehearsal region; the runtime never imports it
    share/          what gets installed elsewhere (package data)

Imports go down the page only, and never sideways among steps or edges (import-linter, pyproject.toml).
"""

__version__ = "0.1.0"

"""do-failover measured beside what people run today, on the lab's real parts. Started by scripts/bench.

    __main__      the command line; the JSON and the tables
    cases         which case runs how often, quick and full
    event_case    event -> POST: the daemon, the one-shot, the tutorial's way, curl
    budget_case   the API calls of one failover
    fanout_case   all peers refreshed, and proven: ours, and ssh in all its dresses
    whole_case    lb1 dies -> everybody is served by lb2
      raw_api     the API's state machine behind a TLS server that notes when a request's first byte came
      loopback    that server, a daemon and a configuration on loopback
      scripts     what people run today, as scripts
      driver      do-failover's own code in a load balancer of the lab, waiting for its go
      ways        the ways to reach all peers, each waiting for its go
      floor       the same exchange over UDP
      pings       the peers' pings alone
      wire        when whose ping arrived at a load balancer, by the kernel's time stamps
      costs       CPU and peak memory of one way's own processes, by a cgroup
      process     a process of the bench's own, and its lines
      figures     medians, spreads, ratios, slopes (pure)
      targets     what was promised, met or missed (pure)
      page svg    docs/performance.md and its plots (pure)
      quote       the README's few lines of it
      merge       rows that were measured again in the place of older ones (pure)
      machine     what machine this is

Everything that it starts ends with it: processes are ended by their pid, labs by their own kernel namespaces.
Nothing here is a test: nobody's patience depends on how fast a machine is.
"""

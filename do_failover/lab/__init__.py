"""The rehearsal region: a failover on real parts, in network namespaces, on one machine.

    outside      requirements   can this machine have a lab; else one sentence
                 launch         starts the lab process in namespaces of its own, listens to its events
                 guard          raises the host's network limits for large labs, and restores them
                 state_file     labs that stay: who stands where
                 handle         a standing lab in the hands of a test
    pure         options        what a lab is asked to be
                 plan           every address and name
                 wiring         links, addresses, routes, sysctls as text
                 files          every configuration file as text
                 keepalived     its configuration, made from keepalived.conf.example; its log read back
                 region         DigitalOcean's state machine: Droplets, reserved IPs, actions
                 shapes routes  its JSON objects; one request to one response
                 faults         what goes wrong with the API, and which request meets it
                 fault_text     the same as text; replies: the bytes of each answer
                 outage result  what a run amounts to
    inside       inner          the lab process: pid 1 of its namespaces
                 rehearsal      everything standing
                 scenario       lb1 dies; who reaches the reserved IP, and since when
                 equipment      every file into its node
                 node services  namespaces and daemons
                 fabric         nftables: where the reserved IP leads, and what goes stale
                 api metadata   DigitalOcean over HTTP (also on loopback, for tests); only home of aiohttp and trustme
                 listener       the API's door: connections, and the faults before TLS
                 meter          every source asks who answers, all along
                 timeline       what happened, as events
                 control logs   for handle; for people
                 daemon         do-failover resident: its user, its files, its own view
                 assign_only    the control's notify script

Cleaning up is the kernel's job: every process, mount, file and namespace of a lab hangs on the lab process.
Nothing here imports click or rich, and the runtime imports nothing from here.
"""

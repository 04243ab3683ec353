"""DigitalOcean's API: reserved IPs, Droplets, actions. The only home of python-digitalocean and requests.

routes     the published paths and bodies (pure)
answers    an HTTP answer becomes a value, or the error that it means (pure)
transport  one kept TLS session, time-outs, a thread for each blocking request
client     what the steps ask for
"""

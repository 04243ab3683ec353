"""do-failover: moves a DigitalOcean reserved IP and proves that every peer noticed."""

__version__ = "0.1.0"

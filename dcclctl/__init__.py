"""Device-Cloud Collaborative Learning on recommendation logs."""

__version__ = "0.1.0"

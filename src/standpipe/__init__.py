"""Standpipe: Luigi pipelines on Debian hosts, on time, once, with every log line kept."""

__version__ = "0.1.0"

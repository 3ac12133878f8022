"""Harvests arXiv day by day, by OAI-PMH, into a database."""

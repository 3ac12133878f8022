"""Secrets in an image: what they look like, where they hide, and how each place is called."""

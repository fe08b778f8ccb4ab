"""Fetch, caption, mine and embed every item in one stream."""

"""Fetching media and decoding them to frames, within limits."""

"""Captioners: pictures in, one sentence about each out."""

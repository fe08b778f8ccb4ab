"""Fit a quantizer and give every item its semantic ID."""

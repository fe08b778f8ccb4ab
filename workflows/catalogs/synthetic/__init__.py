"""The embedded catalogue: generated, deterministic, with a known truth."""

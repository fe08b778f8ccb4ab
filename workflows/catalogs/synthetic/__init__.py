"""The embedded catalogue: generated, deterministic, with known ground truth."""

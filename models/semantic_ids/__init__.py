"""Semantic IDs: quantizers, collisions, suffixes, and how good the IDs are."""

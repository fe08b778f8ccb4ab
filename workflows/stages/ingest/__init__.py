"""Validate the catalogue and write it in canonical form; bad rows leave with their reasons."""

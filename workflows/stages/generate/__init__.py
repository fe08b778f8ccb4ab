"""Fit the recommenders of next items."""

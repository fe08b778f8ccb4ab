"""Metrics of click probabilities, of recommended lists and of texts, with bootstrap intervals."""

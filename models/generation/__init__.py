"""Generative recommendation: one language model over semantic IDs, titles and captions."""

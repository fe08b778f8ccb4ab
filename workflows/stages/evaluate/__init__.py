"""Measure ranker and recommenders on the test split."""

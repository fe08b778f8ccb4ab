"""The workflow definitions that come along."""

"""From items and events to the ranker's input tensors."""

"""Features: split the log, and write what the ranker learns from, as known at each event's time."""

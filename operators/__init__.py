"""What is done to rows: Arrow table in, Arrow table out. Knows nothing of Ray."""

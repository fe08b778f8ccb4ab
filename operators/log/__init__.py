"""What is computed on the interaction log, without Ray: splits, histories, counts, sequences."""

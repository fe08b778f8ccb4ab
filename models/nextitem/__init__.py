"""Next-item models of user histories: SASRec, and parallel semantic IDs."""

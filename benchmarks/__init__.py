"""One script per claim, which prints one JSON object. RESULTS.md holds dated tables."""

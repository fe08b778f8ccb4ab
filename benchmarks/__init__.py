"""One script per claim; each prints one JSON object. RESULTS.md holds dated tables."""

"""One file per stage: typed config + the run's earlier artifacts in, artifacts + a manifest entry out."""

"""The stages of a workflow: typed config and earlier artifacts in, artifacts and a manifest entry out."""

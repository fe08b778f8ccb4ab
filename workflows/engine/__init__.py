"""What runs a workflow: stages, the definition, fingerprints, preflight, the console."""

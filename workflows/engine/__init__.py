"""The engine of a workflow: stages, the definition, fingerprints, preflight, the runner and the console."""

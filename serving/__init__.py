"""The Ray Serve application over a finished run."""

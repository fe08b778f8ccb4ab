"""Ground floor: run directories, manifests, fsspec reading and writing, hashing, limits for untrusted input."""

"""Untrusted media: which URIs may be opened, how much may be read from them, and how they are fetched."""

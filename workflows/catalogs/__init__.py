"""Writers of canonical catalogues: the embedded sample and importers of public data sets."""

"""Language models behind one interface, one file per backend, its settings beside it."""

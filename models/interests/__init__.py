"""Interest mining: a few short tags out of an item's texts."""

"""What models share: jagged tensors, collectives, data-parallel training, seeds, settings, the Recommender protocol."""

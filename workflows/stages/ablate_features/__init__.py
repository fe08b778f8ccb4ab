"""Which features help the ranker: variants, controls, seeds and intervals."""

"""Which tasks help the language model: variants, seeds and intervals."""

"""The default captioner: labels, colours, shape, pattern and light as one sentence, without a language model."""

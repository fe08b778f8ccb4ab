"""Embedding models of pictures and texts, and the projection that fuses their vectors."""

"""Adapt the captioner to a catalogue's own pictures and texts."""

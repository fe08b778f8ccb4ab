"""A small multimodal language model in the shape of BLIP-2: a frozen image encoder, a Q-Former, a decoder."""

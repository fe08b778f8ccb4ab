"""The runs that a service answers from, one or two side by side, and how one takes the place of another."""

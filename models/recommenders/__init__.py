"""Everything that answers which items come next, how it is fitted, and how it is loaded."""

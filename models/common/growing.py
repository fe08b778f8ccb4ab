"""Rows that others are put behind, while those who have taken them go on reading."""

from __future__ import annotations

import torch

LEAST = 256  # rows that there is room for


class Growing:
    """A tensor [N, …] that becomes longer; what was taken of it before stays as it was.

    Attributes:
        rows: of now, not to be written to.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        """Takes the first rows, which are copied when others come."""
        self.rows, self._room = rows, rows

    @torch.inference_mode()
    def append(self, more: torch.Tensor) -> torch.Tensor:
        """Puts rows behind those that there are, and returns all; one thread at a time."""
        count = len(self.rows) + len(more)
        if count > len(self._room):
            self._room = self.rows.new_empty(count + max(LEAST, count // 8), *self.rows.shape[1:])
            self._room[: len(self.rows)] = self.rows
        self._room[len(self.rows) : count] = more
        self.rows = self._room[:count]
        return self.rows

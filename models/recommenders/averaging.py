"""The best states of a fit, whose average a fit may end with in place of the best one."""

from __future__ import annotations

import torch

from models.common.collectives import rank_and_size


class BestStates:
    """The states of the best validations, at most so many; of equal ones the earlier.

    Every worker knows which they are; the first one alone holds their tensors. The average of weights along one fit is
    often better than each of them (Izmailov et al., UAI 2018, arXiv 1803.05407). The best ones are averaged and not
    the last ones, which lie behind the best where patience ends a fit.
    """

    def __init__(self, count: int) -> None:
        """Keeps so many; none where an average would be of one."""
        self._count = count if count > 1 else 0
        self._scores: dict[int, float] = {}  # by step
        self._states: dict[int, dict[str, torch.Tensor]] = {}

    @property
    def steps(self) -> list[int]:
        """The steps of the states, in order."""
        return sorted(self._scores)

    def admits(self, score: float) -> bool:
        """Tells whether a state of this score is among the best so far."""
        return len(self._scores) < self._count or score > min(self._scores.values(), default=score)

    def add(self, step: int, score: float, tensors: dict[str, torch.Tensor]) -> None:
        """Keeps an admitted state, and forgets the worst one where there are too many.

        Args:
            step: behind which it was validated.
            score: higher is better.
            tensors: as `models.common.data_parallel.gather_state` returns them.
        """
        self._scores[step] = score
        self._states[step] = {name: tensor.clone() for name, tensor in tensors.items()}
        if len(self._scores) > self._count:
            worst = min(self._scores, key=lambda at: (self._scores[at], -at))
            del self._scores[worst], self._states[worst]

    def mean(self) -> dict[str, torch.Tensor]:
        """Returns the mean of the states on the first worker, nothing elsewhere; what is no float is that of one."""
        states = [self._states[step] for step in self.steps]
        return {
            name: torch.stack([state[name] for state in states]).mean(0, dtype=torch.float64).to(first.dtype)
            if first.is_floating_point()
            else first
            for name, first in states[0].items()
        }

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns what a killed fit restores; nothing where no state is kept."""
        if not self._count:
            return {}
        scores = torch.tensor([self.steps, [self._scores[step] for step in self.steps]], dtype=torch.float64)
        states = {f"kept.{step}.{name}": value for step in self.steps for name, value in self._states[step].items()}
        return {"kept": scores, **states}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Takes what `tensors` returned out of a state."""
        for step, score in state.pop("kept").T.tolist() if self._count else ():
            prefix = f"kept.{int(step)}."
            found = {name.removeprefix(prefix): state.pop(name) for name in [*state] if name.startswith(prefix)}
            self._scores[int(step)] = score
            self._states[int(step)] = {} if rank_and_size()[0] else found

    def clear(self) -> None:
        """Forgets all states."""
        self._scores.clear()
        self._states.clear()

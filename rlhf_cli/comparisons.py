"""What a look at every preference tells: ties, contradictions, and whether the longer answer is the better one."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.rows import Row, answer_text, prompt_text
from rlhf_cli.sources import Checked


@dataclass
class PairTraces:
    """About 30 bytes a pair: how long its answers are, and enough to know it again the other way round."""

    chosen: array[int] = field(default_factory=lambda: array("L"))
    """Characters."""
    rejected: array[int] = field(default_factory=lambda: array("L"))
    same: array[int] = field(default_factory=lambda: array("B"))
    """1 where both answers say the same."""
    ties: array[int] = field(default_factory=lambda: array("B"))
    """1 where the annotation sees no difference."""
    names: array[int] = field(default_factory=lambda: array("Q"))
    """A hash of the prompt and of both answers, whichever was chosen."""
    orders: array[int] = field(default_factory=lambda: array("B"))
    """Which of the two, by their texts, was chosen."""

    def add(self, checked: Checked) -> None:
        """Keep the trace of a preference."""
        texts = [answer_text(checked.row[side]) for side in ("chosen", "rejected")]
        self.chosen.append(len(texts[0]))
        self.rejected.append(len(texts[1]))
        self.same.append(texts[0] == texts[1])
        self.ties.append(checked.is_tie and texts[0] != texts[1])
        self.names.append(_hash(checked.row, sorted(texts)))
        self.orders.append(texts[0] < texts[1])

    def take(self, indices: NDArray[np.int64]) -> PairTraces:
        """The traces of some of the rows."""
        taken = PairTraces()
        for name in vars(self):
            kept: array[int] = getattr(self, name)
            setattr(taken, name, array(kept.typecode, np.asarray(kept)[indices].tolist() if len(kept) else []))
        return taken

    def odd(self) -> Iterator[tuple[NDArray[np.int64], str, str]]:
        """The rows of each oddity, its name, and what to do about it."""
        if not len(self.chosen):
            return
        advice = "they teach nothing; leave them out with `drop_ties: true`"
        yield np.flatnonzero(np.asarray(self.same)), "pairs whose two answers are the same", advice
        advice = "their margin is 0 or their scores are equal; leave them out with `drop_ties: true`"
        yield np.flatnonzero(np.asarray(self.ties)), "ties", advice
        advice = "the answers of an earlier pair, the other way round; at most one of them can be right"
        yield self._contradictions(), "pairs that contradict another", advice

    def _contradictions(self) -> NDArray[np.int64]:
        names, orders = np.asarray(self.names), np.asarray(self.orders)
        _, first, group = np.unique(names, return_index=True, return_inverse=True)
        return np.flatnonzero((orders != orders[first[group]]) & ~np.asarray(self.same, dtype=bool))

    def lengths(self) -> dict[str, Any]:
        """How chosen and rejected answers differ in length; empty where there are no preferences."""
        if not len(self.chosen):
            return {}
        chosen, rejected = np.asarray(self.chosen, dtype=np.int64), np.asarray(self.rejected, dtype=np.int64)
        longer, equal = float((chosen > rejected).mean()), float((chosen == rejected).mean())
        medians = {"median_chosen": float(np.median(chosen)), "median_rejected": float(np.median(rejected))}
        return {"chosen_longer": longer, "equal": equal, "longer_wins": longer + equal / 2, **medians}

    def as_text(self) -> list[str]:
        """The same as lines for a person."""
        found = self.lengths()
        if not found:
            return []
        return [
            f"answers   chosen {found['median_chosen']:,.0f} characters, rejected {found['median_rejected']:,.0f} "
            "(medians)",
            f"longer    the chosen one in {found['chosen_longer']:.0%} of pairs: the rule that the longer wins is "
            f"right in {found['longer_wins']:.0%}",
        ]


def _hash(row: Row, texts: list[str]) -> int:
    whole = "\0".join([prompt_text(row), *texts])
    return int.from_bytes(blake2b(whole.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")

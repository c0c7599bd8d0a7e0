"""What a look at every row tells: duplicates, leaks, damage, lengths; in one pass and little memory."""

from __future__ import annotations

import json
import math
import re
import textwrap
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from rlhf_cli.comparisons import PairTraces
from rlhf_cli.recipe import Recipe
from rlhf_cli.rows import prompt_words, row_text, short_hash, words_hash
from rlhf_cli.sources import Checked, Tally, entries_of, hold_out, read_entry
from rlhf_cli.terminal import printable, width

SHOWN_PLACES = 3
_BATCH = 2000
_PERMUTATIONS, _BANDS = 32, 8
_ALIKE = 0.8
"""Share of word triples (Jaccard) from which two prompts count as near duplicates."""
_WORDS = 400
"""Words of a prompt that are compared."""
_BAR = 24
"""Characters of the longest bar."""
_BROKEN = re.compile("\ufffd|\x00|Ã[\x80-\xbf]|â€")
"""A replacement character, a null byte, UTF-8 that was read as Latin-1."""


@dataclass(frozen=True)
class Finding:
    """Something about the data that its owner should know."""

    name: str
    count: int
    """Rows it concerns."""
    places: list[str]
    """`file:line` of the first few."""
    advice: str

    def as_text(self) -> str:
        """The finding as it is shown to a person."""
        return f"{self.count:,} {self.name}{self._where()}: {self.advice}"

    def _where(self) -> str:
        """The places, each file named once: `a.jsonl:3, 9, b.jsonl:1, …`."""
        shown, last = [], None
        for place in self.places[:SHOWN_PLACES]:
            file, _, line = place.rpartition(":")
            shown.append(line if file == last else place)
            last = file
        more = ", …" if self.count > len(shown) else ""
        return f" ({', '.join(shown)}{more})" if shown else ""


@dataclass(frozen=True)
class Survey:
    """What was found in the rows of a recipe."""

    sources: list[dict[str, Any]]
    rows: dict[str, int]
    """By split."""
    characters: NDArray[np.uint32]
    """Of each training row."""
    findings: list[Finding]
    tally: Tally
    skips_bad_rows: bool
    pairs: PairTraces
    """Of the training rows, where they are preferences."""

    def as_json(self) -> dict[str, Any]:
        """The survey as a JSON object."""
        return {
            "sources": self.sources,
            "rows": self.rows,
            "characters": histogram(self.characters),
            "findings": [asdict(finding) for finding in self.findings],
            **({"answers": self.pairs.lengths()} if self.pairs.lengths() else {}),
        }

    def as_text(self) -> str:
        """The survey as it is shown to a person."""
        rows = ", ".join(f"{count:,} {split}" for split, count in self.rows.items())
        sources = [f"{printable(read['name'])}: {read['rows']:,} rows as {read['layout']}" for read in self.sources]
        drawn = draw_histogram(self.characters, "characters")
        lines = [*sources, f"rows      {rows}", *drawn, *self.pairs.as_text()]
        return "\n".join([*lines, "", list_findings(self.findings)])

    @property
    def stops_a_run(self) -> bool:
        """Whether bad rows would stop a run of this recipe."""
        return bool(self.tally.bad) and not self.skips_bad_rows


def survey_rows(recipe: Recipe, kind: str) -> Survey:
    """Look at every row a recipe names.

    Args:
        recipe: The recipe.
        kind: The kind of row its method trains on.

    Raises:
        UserError: when a source cannot be read.
    """
    tally = Tally()
    traces: dict[str, _Traces] = {"train": _follow(recipe, recipe["dataset_train_split"], kind, tally, first=True)}
    if recipe["test_split_size"] is not None:
        held_out = hold_out(recipe, traces["train"].groups, len(traces["train"].lines))
        traces = traces["train"].split(held_out)
    elif recipe["eval_strategy"] != "no":
        traces["test"] = _follow(recipe, recipe["dataset_test_split"], kind, tally, first=False)
    return Survey(
        sources=tally.sources,
        rows={split: len(trace.lines) for split, trace in traces.items()},
        characters=np.asarray(traces["train"].characters, dtype=np.uint32),
        findings=list(_findings(traces, tally, recipe)),
        tally=tally,
        skips_bad_rows=bool(recipe["skip_bad_rows"]),
        pairs=traces["train"].pairs,
    )


# --- what is kept of a row ----------------------------------------------------------------------------------------


@dataclass
class _Traces:
    """About 200 bytes a row: enough to know it again, and to say where it stands."""

    names: list[str] = field(default_factory=list)
    """Names of the sources."""
    files: array[int] = field(default_factory=lambda: array("H"))
    lines: array[int] = field(default_factory=lambda: array("L"))
    rows: array[int] = field(default_factory=lambda: array("Q"))
    """A hash of the whole row."""
    prompts: array[int] = field(default_factory=lambda: array("Q"))
    """A hash of the prompt's words; 0 where there is none."""
    characters: array[int] = field(default_factory=lambda: array("L"))
    broken: array[int] = field(default_factory=lambda: array("L"))
    """Rows whose text was damaged by a wrong encoding."""
    groups: list[Any] = field(default_factory=list)
    signatures: list[NDArray[np.uint32]] = field(default_factory=list)
    """MinHash of each prompt's word triples, in batches."""
    pairs: PairTraces = field(default_factory=PairTraces)
    """Of preferences."""

    def place(self, index: int) -> str:
        return f"{self.names[self.files[index]]}:{self.lines[index]}"

    def split(self, held_out: Sequence[int]) -> dict[str, _Traces]:
        """The training rows, and those held out."""
        test = np.zeros(len(self.lines), dtype=bool)
        test[list(held_out)] = True
        return {"train": self._take(np.flatnonzero(~test)), "test": self._take(np.flatnonzero(test))}

    def _take(self, indices: NDArray[np.int64]) -> _Traces:
        taken = _Traces(names=self.names)
        for name in ("files", "lines", "rows", "prompts", "characters"):
            kept: array[int] = getattr(self, name)
            setattr(taken, name, array(kept.typecode, np.asarray(kept)[indices].tolist()))
        taken.broken = array("L", np.flatnonzero(np.isin(indices, np.asarray(self.broken))).tolist())
        taken.signatures = [self.signature()[indices]]
        taken.pairs = self.pairs.take(indices)
        return taken

    def signature(self) -> NDArray[np.uint32]:
        """MinHash signatures, shape (rows, permutations)."""
        empty = np.zeros((0, _PERMUTATIONS), dtype=np.uint32)
        return np.concatenate([empty, *self.signatures])


def _follow(recipe: Recipe, split: str, kind: str, tally: Tally, *, first: bool) -> _Traces:
    """Read a split and keep the trace of each row."""
    traces = _Traces()
    prompts: list[list[str]] = []
    for entry in entries_of(recipe):
        for checked in read_entry(recipe, entry, split, tally, kind=kind, first=first):
            prompts.append(_keep(traces, checked))
            traces.groups.append(checked.group(recipe["split_by"]))
            if len(prompts) == _BATCH:
                traces.signatures.append(_minhash(prompts))
                prompts.clear()
    traces.signatures.append(_minhash(prompts))
    return traces


def _keep(traces: _Traces, checked: Checked) -> list[str]:
    """Keep a row's trace; the words of its prompt are left to be signed."""
    file, _, line = checked.where.rpartition(":")
    if not traces.names or traces.names[-1] != file:
        traces.names.append(file)
    text = row_text(checked.row)
    words = prompt_words(checked.row)
    if _BROKEN.search(text):
        traces.broken.append(len(traces.lines))
    traces.files.append(len(traces.names) - 1)
    traces.lines.append(int(line))
    traces.rows.append(short_hash(json.dumps(checked.row, sort_keys=True, default=str)))
    traces.prompts.append(words_hash(words))
    traces.characters.append(len(text))
    if "chosen" in checked.row:
        traces.pairs.add(checked)
    return words[:_WORDS]


def _minhash(prompts: Sequence[list[str]]) -> NDArray[np.uint32]:
    """MinHash signatures (Broder 1997) of the word triples of each prompt, all prompts at once.

    Returns:
        Shape (prompts, permutations). Two prompts agree in about the share of places that is their triples' Jaccard
        similarity. A prompt without words signs as zeros.
    """
    if not prompts:
        return np.zeros((0, _PERMUTATIONS), dtype=np.uint32)
    # With two empty words behind each prompt no triple reaches into the next one, and one word makes a triple too.
    padded = [word for words in prompts for word in (*words, "", "")]
    hashes = np.fromiter((crc32(word.encode("utf-8", "surrogatepass")) for word in padded), np.uint64, len(padded))
    lengths = np.array([len(words) + 2 for words in prompts])
    ends = np.cumsum(lengths)
    triples = hashes * np.uint64(0x9E3779B97F4A7C15)
    triples[:-1] ^= hashes[1:] * np.uint64(0xC2B2AE3D27D4EB4F)
    triples[:-2] ^= hashes[2:] * np.uint64(0x165667B19E3779F9)
    over = np.concatenate([ends - 1, ends - 2])  # these triples begin behind the prompt
    multipliers = np.random.default_rng(0).integers(1, 2**63, _PERMUTATIONS, dtype=np.uint64) | np.uint64(1)
    signature = np.empty((len(prompts), _PERMUTATIONS), dtype=np.uint32)
    for column, multiplier in enumerate(multipliers):
        mixed = ((triples ^ (triples >> np.uint64(29))) * multiplier) >> np.uint64(32)
        mixed[over] = np.iinfo(np.uint32).max
        signature[:, column] = np.minimum.reduceat(mixed, ends - lengths)
    signature[lengths == 2] = 0
    return signature


# --- what follows ---------------------------------------------------------------------------------------------------


def _findings(traces: dict[str, _Traces], tally: Tally, recipe: Recipe) -> Iterator[Finding]:
    for reason, count in Counter(tally.reasons).most_common():
        places = tally.reason_places[reason]
        advice = "left out" if recipe["skip_bad_rows"] else "stops a run; mend them, or set `skip_bad_rows: true`"
        yield Finding(f"bad rows, {reason}", count, places, advice)
    train, test = traces["train"], traces.get("test")
    yield from _found(train, train.broken, "rows with damaged characters", "read with a wrong encoding once; mend them")
    for indices, name, advice in train.pairs.odd():
        yield from _found(train, indices, name, advice)
    if tally.ties:
        yield Finding("ties left out", tally.ties, [], "as `drop_ties` says")
    again = _repeated(np.asarray(train.rows))
    yield from _found(train, again, "duplicate rows", "each trains once more; remove them if that is not meant")
    same = np.setdiff1d(_repeated(np.asarray(train.prompts)), again)
    advice = "several answers to one prompt; hold out with `split_by: prompt`"
    yield from _found(train, same, "rows with the prompt of an earlier row", advice)
    near = np.setdiff1d(_alike(train.signature()), np.union1d(again, same))
    yield from _found(train, near, "near-duplicate prompts", "nearly the words of an earlier row's")
    if test is not None:
        known = np.isin(np.asarray(test.prompts), np.asarray(train.prompts)) & (np.asarray(test.prompts) != 0)
        leaks = np.flatnonzero(known)
        advice = "their score says little; remove them from one side, or hold out with `split_by: prompt`"
        yield from _found(test, leaks, "test rows whose prompt is trained on", advice)
        both = np.concatenate([train.signature(), test.signature()])
        close = _alike(both, of=len(train.lines)) - len(train.lines)
        yield from _found(test, np.setdiff1d(close, leaks), "test rows whose prompt is nearly one trained on", advice)


def _found(traces: _Traces, indices: Sequence[int] | NDArray[Any], name: str, advice: str) -> Iterator[Finding]:
    if len(indices):
        places = [traces.place(int(index)) for index in indices[:SHOWN_PLACES]]
        yield Finding(name, len(indices), places, advice)


def _repeated(hashes: NDArray[Any]) -> NDArray[np.int64]:
    """Indices of what was there before; 0 is nothing."""
    _, first = np.unique(hashes, return_index=True)
    again = np.ones(len(hashes), dtype=bool)
    again[first] = False
    return np.flatnonzero(again & (hashes != 0))


def _alike(signature: NDArray[np.uint32], of: int = 0) -> NDArray[np.int64]:
    """Indices, from `of` on, of prompts that are like one before; with `of`, like one of the first `of`.

    Rows that agree in a whole band of the signature are compared with the first of them (locality-sensitive hashing,
    Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, ch. 3).
    """
    found: set[int] = set()
    width = _PERMUTATIONS // _BANDS
    for band in range(_BANDS):
        keys = np.ascontiguousarray(signature[:, band * width : (band + 1) * width]).view(f"V{4 * width}").ravel()
        _, first, group = np.unique(keys, return_index=True, return_inverse=True)
        earlier = first[group]
        later = np.flatnonzero((earlier < np.arange(len(keys))) & (np.arange(len(keys)) >= of) & signature.any(axis=1))
        if of:
            later = later[earlier[later] < of]
        agree = (signature[later] == signature[earlier[later]]).mean(axis=1)
        found.update(later[agree >= _ALIKE].tolist())
    return np.array(sorted(found), dtype=np.int64)


def list_findings(findings: Sequence[Finding]) -> str:
    """Findings, one below the other."""
    columns = width() or 100_000
    bullets = [
        textwrap.fill(printable(finding.as_text()), columns, initial_indent="- ", subsequent_indent="  ")
        for finding in findings
    ]
    return "\n".join(bullets) or "nothing found amiss"


def histogram(lengths: Sequence[int] | NDArray[Any]) -> dict[int, int]:
    """How many are at most 16, 32, 64 … long, and longer than half of that."""
    bins: Counter[int] = Counter(max(16, 1 << (int(length) - 1).bit_length()) for length in lengths if length > 0)
    if not bins:
        return {}
    return {1 << power: bins[1 << power] for power in range(min(bins).bit_length() - 1, max(bins).bit_length())}


def draw_histogram(lengths: Sequence[int] | NDArray[Any], unit: str) -> list[str]:
    """The histogram as lines for a terminal."""
    bins = histogram(lengths)
    most = max(bins.values(), default=1)
    heads = [f"{f'{unit} to':<14}{bound:>8,}" if index == 0 else f"{bound:>22,}" for index, bound in enumerate(bins)]
    bars = ["█" * math.ceil(_BAR * count / most) for count in bins.values()]
    return [f"{head}  {bar} {count:,}" for head, bar, count in zip(heads, bars, bins.values(), strict=True)]

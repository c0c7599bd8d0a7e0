"""What a page is made of, whatever it is about, and how that becomes HTML."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_cli.report.draw import Pen
from rlhf_cli.report.samples import Sample
from rlhf_cli.report.wording import clean

FOLDER = Path(__file__).parent
GOOD, BAD, UNSURE = "good", "bad", "unsure"
"""What a number says of a model; the page shows a sign beside the colour."""


@dataclass(frozen=True)
class Number:
    """One of the few numbers that matter."""

    label: str
    value: str
    interval: str = ""
    """Its 95 % interval, as text."""
    note: str = ""
    """What it is of, and what to compare it with."""
    mood: str = ""


@dataclass(frozen=True)
class Key:
    """An entry of a picture's legend."""

    label: str
    colour: str
    dash: Sequence[float] = ()
    shape: str = "line"
    """line, dot, triangle or rule."""


@dataclass
class Picture:
    """A chart with its words."""

    title: str
    spec: dict[str, Any]
    keys: list[Key] = field(default_factory=list)
    note: str = ""
    wide: bool = False
    svg: str = ""
    """Set when the page is rendered."""


@dataclass(frozen=True)
class Cell:
    """A field of a table."""

    text: str
    more: str = ""
    """Said in a smaller voice beside it, such as an interval."""
    title: str = ""
    """Shown when pointed at: the whole of what is cut."""
    strong: bool = False
    code: bool = False
    share: float | None = None
    """Drawn as a bar behind the text."""


@dataclass(frozen=True)
class Table:
    """Rows of facts."""

    rows: list[list[Cell]]
    head: list[str] = field(default_factory=list)
    title: str = ""
    note: str = ""
    folded: bool = False
    """Whether it is closed at first."""
    numeric: bool = False
    """Whether all columns but the first are numbers."""


@dataclass(frozen=True)
class Group:
    """Pictures that belong together."""

    title: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    id: str
    title: str
    lead: str = ""
    groups: list[Group] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    points: list[str] = field(default_factory=list)
    """Sentences in a list."""

    @property
    def is_empty(self) -> bool:
        """Whether it has nothing to show."""
        return not (any(group.pictures for group in self.groups) or self.tables or self.samples or self.points)


@dataclass(frozen=True)
class Page:
    """All of it."""

    title: str
    kind: str
    """What it is about, in a word or two."""
    status: str
    mood: str
    facts: list[tuple[str, str]]
    """Below the title: what was trained or judged, on what, when."""
    command: str
    """To do it again."""
    verdict: str
    """The outcome in one sentence or two; a line for each model that is compared."""
    numbers: list[Number]
    sections: list[Section]
    alerts: list[str] = field(default_factory=list)
    """What a reader has to know before anything else."""
    made_by: str = ""

    def pictures(self) -> Iterator[Picture]:
        """Every picture on it."""
        for section in self.sections:
            for group in section.groups:
                yield from group.pictures


def render(page: Page, pen: Pen) -> str:
    """The page as one HTML document that loads nothing and runs nothing but our own script.

    Args:
        page: What is on it.
        pen: What draws its pictures.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    pictures = list(page.pictures())
    drawn = pen.draw([(f"{each.title}. {each.note}".strip(), each.spec) for each in pictures])
    for picture, svg in zip(pictures, drawn, strict=True):
        picture.svg = svg
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["with_code"] = _with_code
    whole = environment.get_template("page.html.jinja").render(
        page=page,
        sections=[section for section in page.sections if not section.is_empty],
        style=(FOLDER / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        signs={GOOD: "✓", BAD: "✗", UNSURE: "~", "": ""},
    )
    return str(clean(whole))


def _with_code(text: str) -> Any:
    """A sentence with what stands between backticks as code; all of it escaped."""
    from markupsafe import Markup, escape

    parts = text.split("`")
    if len(parts) % 2 == 0:
        return escape(text)
    return Markup().join(Markup("<code>{}</code>").format(part) if odd % 2 else part for odd, part in enumerate(parts))

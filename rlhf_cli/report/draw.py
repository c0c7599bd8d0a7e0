"""Vega-Lite specifications into SVG that follows the page's colours: `python -m rlhf_cli.report.draw < SPECS`.

The drawing is done by a process of its own. It runs V8, which wants more address space than `ulimit -v` may allow,
starts threads that no fork survives, and where it fails takes its process with it: that must not be the one that has
just trained a model.
"""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from rlhf_cli.errors import EnvironmentFault
from rlhf_cli.report.wording import clean

COLOURS = {
    "ink": "#010203", "soft": "#010204", "line": "#010205", "paper": "#010206", "panel": "#010207",
    "blue": "#010208", "orange": "#010209", "green": "#01020a", "purple": "#01020b", "sky": "#01020c",
    "yellow": "#01020d",
}  # fmt: skip
"""What a chart calls the colours of the page, which light and dark choose."""
_LIMIT_S = 120
_NAMES = {value: f"var(--{name})" for name, value in COLOURS.items()}
_COLOUR = re.compile("|".join(COLOURS.values()), re.IGNORECASE)
_HEAD = re.compile(r'<svg [^>]*?width="([\d.]+)" height="([\d.]+)"[^>]*>')
_OPENING = r'<svg viewBox="0 0 \1 \2" width="\1" height="\2" role="img" aria-label="LABEL">'
_NEEDLESS = re.compile(
    r'<path class="(?:foreground|background)"[^>]*? d="(?:|M0,0h0v0h0Z)"[^>]*/>'
    r'| (?:class|role|aria-hidden|aria-roledescription|pointer-events|font-family|stroke-miterlimit)="[^"]*"(?=[^<>]*>)'
    r'| (?:opacity|stroke-width|stroke-opacity)="1"(?=[^<>]*>)'
)


class Pen:
    """Draws charts in a process of its own, which gets ready while the charts are worked out."""

    def __init__(self) -> None:
        # -P: what lies in the user's folder is not imported.
        command = [sys.executable, "-P", "-m", "rlhf_cli.report.draw"]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        except OSError as error:
            raise _fault(str(error)) from error

    def __enter__(self) -> Pen:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def draw(self, charts: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        """Draw all charts of a page.

        Args:
            charts: Of each what it shows, for those who cannot see it, and its Vega-Lite, coloured by `COLOURS`.

        Returns:
            An SVG element each, whose ids are its own on the page.

        Raises:
            EnvironmentFault: when the process fails.
        """
        if not charts:
            return []
        wanted = json.dumps(clean([spec for _, spec in charts])).encode()
        try:
            drawn, said = self._process.communicate(wanted, timeout=_LIMIT_S)
        except subprocess.TimeoutExpired as error:
            raise _fault(str(error)) from error
        if self._process.returncode != 0:
            lines = said.decode(errors="replace").strip().splitlines()
            raise _fault(lines[-1] if lines else f"exit code {self._process.returncode}")
        charted = zip(json.loads(drawn), charts, strict=True)
        return [_themed(svg, label, number) for number, (svg, (label, _)) in enumerate(charted)]


def _fault(why: str) -> EnvironmentFault:
    return EnvironmentFault(f"charts cannot be drawn here: {why}", hint="`report: false` leaves the page out")


def _themed(svg: str, label: str, number: int) -> str:
    """An SVG in the colours of the page, without what only its own document would need."""
    svg = _HEAD.sub(lambda found: found.expand(_OPENING).replace("LABEL", html.escape(label)), svg, count=1)
    svg = _COLOUR.sub(lambda found: _NAMES[found.group().lower()], _NEEDLESS.sub("", svg))
    return re.sub(r'(id="|url\(#)(?=clip|gradient)', rf"\g<1>c{number}-", svg)


def main() -> None:
    """Read specifications from stdin, and write their SVGs to stdout."""
    import vl_convert

    vl_convert.vegalite_to_svg({"data": {"values": []}, "mark": "point"})  # starts V8 while nobody waits for it yet
    sys.stdout.write(json.dumps([vl_convert.vegalite_to_svg(spec) for spec in json.load(sys.stdin)]))


if __name__ == "__main__":
    main()

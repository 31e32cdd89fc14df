"""Colours and words of the four regimes, the same on the console, in the page and in print.

Dark means a high gap, light a low one; the hues are dopd's: warm where its teacher teaches, cool where
its self-target does. The four are of Okabe and Ito's palette, which the common colour-vision deficiencies
keep apart. What teaches a regime under another method says `method_text`.
"""

from dataclasses import dataclass

from dopd_vlm.types import Regime


@dataclass(frozen=True, kw_only=True)
class Paint:
    """How one regime is shown."""

    fill: str
    """Background, #rrggbb."""
    ink: str
    """Text on it; contrast at least 4.5 to 1."""
    condition: str
    """Which tokens are of the regime."""


PAINTS: dict[Regime, Paint] = {
    Regime.LH: Paint(fill="#E69F00", ink="#000000", condition="low gap, both targets sure"),
    Regime.LL: Paint(fill="#56B4E9", ink="#000000", condition="low gap, neither target sure"),
    Regime.HT: Paint(fill="#D55E00", ink="#000000", condition="high gap, teacher surer"),
    Regime.HS: Paint(fill="#0072B2", ink="#FFFFFF", condition="high gap, self-target surer"),
}
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
"""Colours of lines that are no regimes, in order."""
BLUE, RED, GREEN, PINK, ORANGE, SKY, BLACK, BROWN = SERIES

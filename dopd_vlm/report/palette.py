"""Colours and words of the four regimes, the same on the console, in the page and in print.

Warm means taught by the teacher, cool by the privileged student; dark means a high gap, light a low one.
The four are of Okabe and Ito's palette, which the common colour-vision deficiencies keep apart.
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
    meaning: str
    """One line for a legend."""


PAINTS: dict[Regime, Paint] = {
    Regime.LH: Paint(
        fill="#E69F00", ink="#000000", meaning="low gap, both sure: light teaching by the teacher"
    ),
    Regime.LL: Paint(
        fill="#56B4E9",
        ink="#000000",
        meaning="low gap, neither sure: weak anchor to the privileged student",
    ),
    Regime.HT: Paint(
        fill="#D55E00", ink="#000000", meaning="high gap, teacher surer: deep teaching"
    ),
    Regime.HS: Paint(
        fill="#0072B2",
        ink="#FFFFFF",
        meaning="high gap, privileged student surer: anchor to the privileged student",
    ),
}
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
"""Colours of lines that are no regimes, in order."""

"""One scale for P('+') in all reports: red (0) over yellow (0.5) to green (1), grey for unknown."""

from __future__ import annotations

Rgb = tuple[int, int, int]

UNKNOWN: Rgb = (128, 128, 128)
_STOPS: tuple[Rgb, Rgb, Rgb] = ((200, 45, 45), (205, 155, 20), (30, 140, 70))


def score_rgb(score: float | None) -> Rgb:
    """Return the colour of a score in [0, 1]; scores outside are clamped."""
    if score is None:
        return UNKNOWN
    place = min(1.0, max(0.0, score)) * 2
    low = _STOPS[min(1, int(place))]
    high = _STOPS[min(1, int(place)) + 1]
    part = place - min(1, int(place))
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(low, high, strict=True))
    return red, green, blue


def css(colour: Rgb) -> str:
    """Return a colour as "#rrggbb"."""
    return "#{:02x}{:02x}{:02x}".format(*colour)

"""Price lists given on the command line, and what a search cost by them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vprm_search.budget import Prices
from vprm_search.cli import options
from vprm_search.errors import ConfigError
from vprm_search.types import Usage

_PANEL = "Cost"

PriceFile = Annotated[
    Path | None,
    typer.Option("--prices", help="JSON file of prices (budget.Prices).", rich_help_panel=_PANEL),
]
PricePrompt = Annotated[
    float | None,
    typer.Option(help="Per million prompt tokens of the policy.", rich_help_panel=_PANEL),
]
PriceGenerated = Annotated[
    float | None,
    typer.Option(help="Per million generated tokens.", rich_help_panel=_PANEL),
]
PriceScored = Annotated[
    float | None,
    typer.Option(help="Per million scored tokens.", rich_help_panel=_PANEL),
]
PriceImage = Annotated[
    float | None,
    typer.Option(help="Per image the scorer encodes.", rich_help_panel=_PANEL),
]


def read_prices(
    file: Path | None,
    *,
    prompt: float | None = None,
    generated: float | None = None,
    scored: float | None = None,
    image: float | None = None,
) -> Prices | None:
    """Return the prices of a file, those given one by one instead of them; None if there are none.

    Raises `ConfigError` for a file that cannot be used or a price below 0.
    """
    given = {
        "per_million_prompt_tokens": prompt,
        "per_million_generated_tokens": generated,
        "per_million_scored_tokens": scored,
        "per_image": image,
    }
    known: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if file is None and not known:
        return None
    listed = Prices()
    if file is not None:
        try:
            listed = Prices.loads(file.read_text(encoding="utf-8"), str(file))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file} cannot be read: {error}") from error
    return options.checked(Prices, {**listed.model_dump(), **known})


def cost_json(usage: Usage, prices: Prices) -> dict[str, Any]:
    """Return what `usage` costs, as plain JSON."""
    return {"amount": usage.cost(prices), "currency": prices.currency}


def cost_line(usage: Usage, prices: Prices) -> str:
    """Return what `usage` costs, in words."""
    return f"Cost: {usage.cost(prices):.6g} {prices.currency}"

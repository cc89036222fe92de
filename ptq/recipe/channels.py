"""Settings of which channels leave a model: words and shares, checked."""

from __future__ import annotations

import math

from ptq.core.errors import RecipeError

FEWEST = "fewest"
"""Word for as few products as the goals allow; what carries nothing leaves as with `auto`."""

AUTO = 1 / 1024
"""Share of an 8-bit step that a channel may move by and still be called constant."""

SQUEEZES = {"never": None, "proved": 0.0, "auto": AUTO, FEWEST: AUTO}
"""Words for the share of a step that a channel may move by and leave the model."""


def squeeze_share(text: str) -> float | None:
    """Return the share of a step that a channel may move by and leave; 0 for what is proved alone, None for none.

    Args:
        text: One of `SQUEEZES`, or a share such as `0.1` or `10%`.

    Raises:
        RecipeError: It is something else.
    """
    if text in SQUEEZES:
        return SQUEEZES[text]
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise RecipeError(f"squeeze is {text!r:.80}; expected {', '.join(SQUEEZES)} or a share such as 0.1")
    return share


def check_max_macs(share: float | None, squeeze: str, *, has_goal: bool, searches: bool) -> None:
    """Refuse shares of products that are none, and to take away what carries something where nothing says how much.

    Args:
        share: Products that may be left; None for all.
        squeeze: Which channels leave; `fewest` finds a share.
        has_goal: Whether a goal says how near to float is near enough.
        searches: Whether word lengths are searched for as well.

    Raises:
        RecipeError: The share is no such share, there is no goal, or two things are to be found at once.
    """
    if share is not None and not 0 < share <= 1:
        raise RecipeError(f"max_macs is {share}; expected a share of the products, for example 80% or 0.8")
    if searches and squeeze == FEWEST:
        raise RecipeError("--goal seeks the fewest bytes, a goal of --squeeze the fewest products; leave one of them")
    if share is not None and squeeze == FEWEST:
        raise RecipeError(f"squeeze {FEWEST!r} finds the share of products, max_macs gives it; leave one of them")
    if not has_goal and (share is not None or squeeze == FEWEST):
        name = "max_macs" if share is not None else f"squeeze {FEWEST!r}"
        raise RecipeError(
            f"{name} takes away channels that carry something, and no goal says how much may be lost; "
            "add --max-drop, --min-agreement or --min-sqnr-db, or goals to the recipe"
        )

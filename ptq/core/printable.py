"""Names come from files that anybody wrote: what they may not do to a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Text whose every character shows: control, format and separator characters as escapes, spaces as they are.

    Example:
        >>> print(printable("a\x1b[31m\nb c"))
        a\x1b[31m\nb c
    """
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)

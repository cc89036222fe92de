"""Text from files that anybody wrote, made harmless for a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Return the text with control, format and separator characters as escapes; spaces stay as they are.

    Example:
        >>> print(printable("a\x1b[31m\nb c"))
        a\x1b[31m\nb c
    """
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)

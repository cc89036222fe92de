"""Words and files: of the standard library and of packages."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pydoc_data.topics import topics

import numpy as np
from numpy.typing import NDArray

from tests.released.fetch import Cache, Member, Package


@lru_cache
def prose(part: int) -> str:
    """English that Python brings along, half of it to calibrate with, half to evaluate with."""
    return "\n".join(text for index, text in enumerate(topics.values()) if index % 2 == part)


@lru_cache
def words(part: int) -> list[str]:
    return sorted(set(re.findall(r"\b[A-Za-z]{2,12}\b", prose(part))))


def sentences(part: int, count: int) -> list[str]:
    found = re.findall(r"[A-Z][a-z]+(?: [a-z]+){4,16}\.", prose(part).replace("\n", " "))
    return [found[i] for i in np.random.default_rng(part).choice(len(found), count, replace=len(found) < count)]


def file_bytes(cache: Cache, packages: tuple[Package, ...], part: int, count: int) -> NDArray[np.int32]:
    """Beginnings and ends of files of all kinds, numbers of their bytes and 256 where there are none."""
    kinds: dict[str, list[Member]] = {}
    for package in packages:
        for name in cache.names(package):
            kinds.setdefault(name.rpartition(".")[2][:6], []).append(Member(package, name))
    rng, rows = np.random.default_rng(40 + part), []
    for index in range(count):
        kind = sorted(kinds)[index % len(kinds)]
        halves = kinds[kind][part::2] or kinds[kind]
        data = cache.read(halves[int(rng.integers(len(halves)))])
        first, last = data[:4096].lstrip()[:1024], data[-4096:].rstrip()[-1024:]
        pad = [256] * 1024
        rows.append([*first, *pad][:1024] + [*pad, *last][-1024:])
    return np.array(rows, np.int32)


def letters_of(cache: Cache, alphabet: Member, listed: Member, part: int, count: int) -> NDArray[np.int64]:
    """Thai words in a row, numbered by a table of letters. Shape [count, 1, 96]."""
    table = json.loads(cache.read(alphabet))
    vocabulary = [w for w in cache.read(listed).decode().split() if re.fullmatch(r"[\u0e00-\u0e7f]+", w)][part::2]
    rng = np.random.default_rng(50 + part)
    rows = ["".join(rng.choice(vocabulary, 60))[:96] for _ in range(count)]
    return np.array([[[table.get(letter, table["<UNK>"]) for letter in row]] for row in rows], np.int64)


def padded_words(cache: Cache, listed: Member, config: Member, part: int, count: int) -> NDArray[np.int32]:
    """Russian words, eight a feed, numbered and padded. Shape [count, 8, 24]."""
    table = json.loads(cache.read(config))["mapping"]["tokenizer_vocab"]
    vocabulary = [word for word in json.loads(cache.read(listed)) if 4 <= len(word) <= 24][part::2]
    chosen = np.random.default_rng(60 + part).choice(vocabulary, (count, 8))
    numbered = [[([table.get(letter, 1) for letter in word] + [0] * 24)[:24] for word in row] for row in chosen]
    return np.array(numbered, np.int32)

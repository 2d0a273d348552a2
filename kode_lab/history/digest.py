"""The 64-bit digest of a list of markers: what a turn says about everything that came before it.

Whole prefixes would make a history quadratic, so a turn states only this number; two lists that
differ anywhere, also only in their order, have different digests. It guards against faults, not
against forgers: who wants to can compute a collision.

The digest is a polynomial over the hashes of the markers, so the next one follows from the last,
and the multiplier is odd, so that each step can be undone: prefixes are never forgotten, and a
million of them are computed by cumulative sums (``kode_lab.check.fast``).

Source: the polynomial is Rabin and Karp's, the multiplier that of Knuth's MMIX generator, the last
mixing steps those of a multiply-xorshift finaliser, because a polynomial alone collides on swaps.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence
from functools import lru_cache
from struct import Struct

__all__ = ["MULTIPLIER", "digest_of", "hash_of", "hashes_of", "prefix_digests"]

MULTIPLIER = 6_364_136_223_846_793_005
_MASK = 0xFFFF_FFFF_FFFF_FFFF
_LIMIT_WORDS = 32
# So many markers are hashed at once that the long integers stay in the cache.
_PORTION = 256
# What takes a marker's bytes apart into words, by how many there are; longer ones go the slow way.
_words = tuple(Struct(f"<{count}Q").unpack for count in range(_LIMIT_WORDS + 1))


def hash_of(marker: str) -> int:
    """Return the 64-bit hash of one marker: a polynomial over its 8-byte words, then mixed.

    Only additions, multiplications and shifts, so that numpy computes a million at once and a
    history can be written in any language.
    """
    data = marker.encode()
    value = len(data)
    count = value + 7 >> 3
    unpack = _words[count] if count <= _LIMIT_WORDS else Struct(f"<{count}Q").unpack
    for word in unpack(data.ljust(8 * count, b"\0")):
        value = value * MULTIPLIER + word & _MASK
    value = (value ^ value >> 32) * MULTIPLIER & _MASK
    return value ^ value >> 29


# A session's prefix is digested again with each of its turns.
_remembered_hash = lru_cache(maxsize=65_536)(hash_of)


def digest_of(markers: Iterable[str], digest: int = 0) -> int:
    """Return the 64-bit digest of ``markers`` after a prefix that has ``digest``."""
    for marker in markers:
        digest = (digest * MULTIPLIER + _remembered_hash(marker)) & _MASK
    return digest


def hashes_of(markers: Sequence[str]) -> list[int]:
    """Return ``hash_of`` of each marker: in few steps if all have one length."""
    if not markers:
        return []
    size = len(markers[0])
    # At least one NUL after each, so that NULs in the right places, and nowhere else, prove that
    # all have that length.
    padding = 8 - size % 8
    text = ("\0" * padding).join([*markers, ""])
    width = (size + padding) // 8
    if not text.isascii() or text.count("\0") != padding * len(markers):
        return list(map(hash_of, markers))
    # A word that is cut short by NULs; the first character of the next marker must follow these.
    words = array("Q", text.encode()) if len(text) == 8 * width * len(markers) else array("Q")
    if sys.byteorder == "big":
        words.byteswap()
    limit = 1 << 8 * (size % 8)
    if not words or max(words[width - 1 :: width]) >= limit:
        return list(map(hash_of, markers))
    hashes: list[int] = []
    for first in range(0, len(words), width * _PORTION):
        hashes += _mixed(words[first : first + width * _PORTION], width, size)
    return hashes


def _mixed(words: array[int], width: int, size: int) -> list[int]:
    """Return the hashes of markers of one size, of ``width`` words each.

    All are computed at once, in the 128-bit lanes of one long integer, which multiplies 64 bits
    in each without a carry into the next: some hundred steps of the interpreter less.
    """
    lanes = len(words) // width
    ones = int.from_bytes((b"\1" + bytes(15)) * lanes, "little")
    mask, value = ones * _MASK, ones * size
    for at in range(size + 7 >> 3):
        spread = array("Q", bytes(16 * lanes))
        spread[::2] = words[at::width]
        value = value * MULTIPLIER + int.from_bytes(spread.tobytes(), "little") & mask
    # Bits of the next lane that are shifted into this one stand above its 64.
    value = (value ^ value >> 32 & mask) * MULTIPLIER & mask
    value ^= value >> 29 & mask
    return array("Q", value.to_bytes(16 * lanes, "little"))[::2].tolist()


def prefix_digests(markers: Iterable[str], digest: int = 0) -> list[int]:
    """Return the digest of each prefix, from the empty one, which has ``digest``, to the whole."""
    last = digest
    following = [last := last * MULTIPLIER + value & _MASK for value in hashes_of(list(markers))]
    return [digest, *following]

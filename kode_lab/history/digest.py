"""The 64-bit digest of a list of markers: what a turn says about everything that came before it.

Whole prefixes would make a history quadratic, so a turn states only this number; two lists that
differ anywhere, also only in their order, have different digests. It guards against faults, not
against forgers: a collision can be computed.

The digest is a polynomial over the hashes of the markers, so the next one follows from the last,
and the multiplier is odd, so that each step can be undone: prefixes are never forgotten, and a
million of them are computed by cumulative sums (``kode_lab.check.screen``).

Source: the polynomial is Rabin and Karp's, the multiplier that of Knuth's MMIX generator, the last
mixing steps those of a multiply-xorshift finaliser, because a polynomial alone collides on swaps.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from struct import Struct

__all__ = ["MULTIPLIER", "digest_of", "hash_of", "prefix_digests"]

MULTIPLIER = 6_364_136_223_846_793_005
_MASK = 0xFFFF_FFFF_FFFF_FFFF
_LIMIT_WORDS = 32
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


def prefix_digests(markers: Iterable[str], digest: int = 0) -> list[int]:
    """Return the digest of each prefix, from the empty one, which has ``digest``, to the whole."""
    last = digest
    hashes = map(_remembered_hash, markers)
    return [digest, *(last := last * MULTIPLIER + value & _MASK for value in hashes)]

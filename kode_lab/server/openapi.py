from __future__ import annotations


def document(limits, *, needs_token):
    return {}

#!/usr/bin/env bash
# orjson 3.13.0, CPython on Linux
#
# Expected   The bytes that orjson.dumps returns take the memory of their text: 100,000 results of about 100 bytes take some
#            15 MB, as sys.getsizeof says (136 bytes each).
# Behaviour  Each keeps the 4 KB buffer that it was written into, as long as the object lives.
# Seen       4123 bytes each as returned, 154 bytes each once copied with bytes(memoryview(result))
# Matters    A cache of conversations, messages or events that keeps what orjson returned takes up to 30 times the memory
#            that it counts, and a limit in bytes does not hold. Written to a file or socket and dropped, it does no harm.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" --quiet --disable-pip-version-check install orjson==3.13.0
"$work/venv/bin/python" - <<'PY'
import os
import sys

import orjson


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


message = {"role": "user", "content": [{"type": "text", "text": "q" * 50}]}
makers = {
    "as returned": lambda: orjson.dumps(message),
    "copied": lambda: bytes(memoryview(orjson.dumps(message))),
}
kept, each = [], {}
for name, make in makers.items():
    before = resident_bytes()
    kept.append([make() for _ in range(100_000)])
    each[name] = (resident_bytes() - before) / 100_000
print({name: round(size) for name, size in each.items()}, "bytes each; getsizeof says", sys.getsizeof(kept[0][0]))
sys.exit(0 if each["as returned"] > 10 * each["copied"] else 1)
PY

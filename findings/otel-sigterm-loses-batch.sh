#!/usr/bin/env bash
# opentelemetry-sdk 1.45.2
#
# Expected   The spans that wait in a BatchSpanProcessor are exported when a container is stopped the usual way (SIGTERM).
# Behaviour  The processor flushes at a normal exit only (atexit). SIGTERM's default action ends the process without that: all
#            spans of the last batch interval, 5 s by default, are lost, and nothing says so.
# Seen       normal exit: 10 of 10 spans; SIGTERM: 0 of 10
# Matters    The turns that were in flight at a deployment or a scale-down are missing from the trace. A turn without a span
#            is not a turn that did not happen: a verdict drawn from traces must count it as unknown.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" --quiet --disable-pip-version-check install opentelemetry-sdk==1.45.2
cat > "$work/service.py" <<'PY'
import sys
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter()))
for number in range(10):
    provider.get_tracer("service").start_span(f"turn {number}").end()
print("ready", file=sys.stderr, flush=True)
if "wait" in sys.argv:
    sys.stdin.read()
PY
cat > "$work/run.py" <<'PY'
import signal, subprocess, sys

service = [sys.executable, sys.argv[1]]
ended = subprocess.run(service, capture_output=True, text=True, timeout=60)
print("normal exit:", ended.stdout.count('"name": "turn'), "of 10 spans")
pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
with subprocess.Popen([*service, "wait"], text=True, **pipes) as running:
    running.stderr.readline()
    running.send_signal(signal.SIGTERM)
    exported, _ = running.communicate(timeout=60)
print("SIGTERM:", exported.count('"name": "turn'), "of 10 spans")
PY
"$work/venv/bin/python" "$work/run.py" "$work/service.py" | tee "$work/seen"
diff "$work/seen" - <<'SEEN' && echo "as described"
normal exit: 10 of 10 spans
SIGTERM: 0 of 10 spans
SEEN

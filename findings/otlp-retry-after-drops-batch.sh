#!/usr/bin/env bash
# opentelemetry-sdk 1.45.2, opentelemetry-exporter-otlp-proto-http 1.45.2
#
# Expected   When the collector answers 429 with Retry-After, the exporter sends the batch again after that time, or
#            force_flush() returns False if it could not.
# Behaviour  A Retry-After that does not fit into the exporter's time-out (10 s by default) drops the batch at once.
#            force_flush() returns True all the same; one log line speaks of a time-out.
# Seen       Retry-After 1: 2 requests, flushed True; Retry-After 15: 1 request, flushed True
# Matters    A collector under load asks for longer pauses, exactly when the interesting turns happen. A test that flushes and
#            then judges the trace judges a part of it: a turn without spans must count as unknown, never as lost.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" --quiet --disable-pip-version-check install \
    opentelemetry-sdk==1.45.2 opentelemetry-exporter-otlp-proto-http==1.45.2
cat > "$work/run.py" <<'PY'
import http.server, logging, threading
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

logging.disable(logging.CRITICAL)

def flush_against(retry_after):
    requests = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            requests.append(self.path)
            self.send_response(429 if len(requests) == 1 else 200)
            if len(requests) == 1:
                self.send_header("Retry-After", retry_after)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    exporter = OTLPSpanExporter(f"http://127.0.0.1:{server.server_port}/v1/traces")
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    provider.get_tracer("service").start_span("turn").end()
    flushed = provider.force_flush(30_000)
    print(f"Retry-After {retry_after}: {len(requests)} requests, flushed {flushed}")
    server.shutdown()

flush_against("1")
flush_against("15")
PY
"$work/venv/bin/python" "$work/run.py" | tee "$work/seen"
diff "$work/seen" - <<'SEEN' && echo "as described"
Retry-After 1: 2 requests, flushed True
Retry-After 15: 1 requests, flushed True
SEEN

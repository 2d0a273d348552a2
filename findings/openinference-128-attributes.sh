#!/usr/bin/env bash
# openinference-instrumentation-openai 0.1.66, opentelemetry-sdk 1.45.2
#
# Expected   A span of a long conversation either holds the conversation and its session, or is marked as cut.
# Behaviour  OpenInference writes two attributes for each message. OpenTelemetry's SDK keeps 128 attributes of a span and drops the
#            oldest: first session.id and user.id, which were set first, then the beginning of the conversation. The span's
#            status stays OK; only dropped_attributes and a log line for each ("Attributes dict is full") tell.
# Seen       10 messages: session kept, messages from 0; 70 messages: no session, messages from 8, 26 attributes dropped
# Matters    A long session disappears from every view by session, and its traces look like conversations that begin in the
#            middle. Set OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT=10000.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" --quiet --disable-pip-version-check install \
    opentelemetry-sdk==1.45.2 openinference-instrumentation-openai==0.1.66 openai==3.57.0
cat > "$work/service.py" <<'PY'
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from openai import OpenAI
from openinference.instrumentation import using_attributes
from openinference.instrumentation.openai import OpenAIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


class Model(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        message = {"role": "assistant", "content": "Noted."}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        reply = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        body = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Model)
threading.Thread(target=server.serve_forever, daemon=True).start()
spans = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
OpenAIInstrumentor().instrument(tracer_provider=provider)
client = OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none")
for count in (10, 70):
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": f"message {n}"} for n in range(count - 1)]
    messages.append({"role": "user", "content": "the last"})
    with using_attributes(session_id="trip", user_id="ada"):
        client.chat.completions.create(model="m", messages=messages)
    (span,) = spans.get_finished_spans()
    spans.clear()
    kept = [int(n) for n in re.findall(r"llm\.input_messages\.(\d+)\.message\.content", " ".join(span.attributes))]
    session = "session kept" if "session.id" in span.attributes else "no session"
    status = span.status.status_code.name
    print(f"{count} messages: {session}, messages from {min(kept)}, {span.dropped_attributes} attributes dropped, {status}")
PY
"$work/venv/bin/python" "$work/service.py" 2>"$work/log" | tee "$work/seen"
diff "$work/seen" - <<'SEEN' && echo "as described"
10 messages: session kept, messages from 0, 0 attributes dropped, OK
70 messages: no session, messages from 8, 26 attributes dropped, OK
SEEN

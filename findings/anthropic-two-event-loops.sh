#!/usr/bin/env bash
# anthropic 2.14.0 (Python 3.11 and newer)
#
# Expected   A client object that is not closed can be used from a second asyncio.run(), or refuses that with an error
#            that names the event loop.
# Behaviour  The pooled connection still belongs to the first loop. The next call fails with APIConnectionError("Connection
#            error."), whose cause is RuntimeError("Event loop is closed"). The call after that works again, because the
#            broken connection has left the pool.
# Seen       ok, APIConnectionError: Connection error. (RuntimeError: Event loop is closed), ok
# Matters    Notebooks, pytest and task queues run several event loops in one process. With the client's default of two
#            retries the fault shows only as a retry, so a turn may reach the service twice; with max_retries=0 every second
#            use fails. Make the client inside the loop that uses it.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" --quiet --disable-pip-version-check install anthropic==2.14.0
cat > "$work/run.py" <<'PY'
import asyncio, http.server, json, threading
import anthropic

class Api(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        reply = {"id": "m", "type": "message", "role": "assistant", "model": "x", "stop_reason": "end_turn",
                 "stop_sequence": None, "content": [{"type": "text", "text": "hi"}],
                 "usage": {"input_tokens": 1, "output_tokens": 1}}
        body = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = anthropic.AsyncAnthropic(api_key="k", base_url=f"http://127.0.0.1:{server.server_port}", max_retries=0)

async def ask():
    await client.messages.create(model="x", max_tokens=5, messages=[{"role": "user", "content": "hello"}])

for _ in range(3):
    try:
        asyncio.run(ask())
        print("ok")
    except anthropic.APIConnectionError as error:
        cause = error.__cause__
        print(f"{type(error).__name__}: {error} ({type(cause).__name__}: {cause})")
PY
"$work/venv/bin/python" "$work/run.py" | tee "$work/seen"
diff "$work/seen" - <<'SEEN' && echo "as described"
ok
APIConnectionError: Connection error. (RuntimeError: Event loop is closed)
ok
SEEN

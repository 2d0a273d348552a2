#!/usr/bin/env bash
# opentelemetry-instrumentation-openai-v2 2.4b0, opentelemetry-util-genai 1.3b0 and 0.4b0, openai 3.57.0
#
# Expected   What pip installs for the instrumentation can be imported.
# Behaviour  It imports httpx, which neither it nor openai 3.57 (httpx2) requires. It requires opentelemetry-util-genai>=0.4b0.dev
#            without an upper bound, so pip takes 1.3b0, which has no module "instruments" any more.
# Seen       as installed: No module named 'httpx'; with httpx: No module named 'opentelemetry.util.genai.instruments'; with
#            opentelemetry-util-genai 0.4b0 as well: imported
# Matters    opentelemetry-instrument logs the failed import and goes on: the service runs without model spans, and an
#            audit of its traces has nothing to judge. Pin opentelemetry-util-genai==0.4b0 and httpx.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip() { "$work/venv/bin/pip" --quiet --disable-pip-version-check install "$@"; }
try() {
    "$work/venv/bin/python" -c \
        "from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor; print('imported')" 2>&1 | tail -1
}
pip opentelemetry-instrumentation-openai-v2==2.4b0 openai==3.57.0 opentelemetry-util-genai==1.3b0
{
    echo "as installed: $(try || true)"
    pip httpx==0.28.1
    echo "with httpx: $(try || true)"
    pip opentelemetry-util-genai==0.4b0
    echo "with util-genai 0.4b0: $(try || true)"
} | tee "$work/seen"
diff "$work/seen" - <<'SEEN' && echo "as described"
as installed: ModuleNotFoundError: No module named 'httpx'
with httpx: ModuleNotFoundError: No module named 'opentelemetry.util.genai.instruments'
with util-genai 0.4b0: imported
SEEN

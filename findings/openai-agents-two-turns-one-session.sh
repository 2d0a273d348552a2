#!/usr/bin/env bash
# openai-agents 0.24.0 with its SQLiteSession
#
# Expected   Two Runner.run() calls on one session run one after the other, or the second is refused.
# Behaviour  Both load the same history and both save: the session then holds question, question, answer, answer. Nothing
#            is lost, but neither model call was shown the other turn, and the next request contains two user messages
#            in a row followed by two assistant messages.
# Seen       shown: [one], [two] / session: one, two, re: one, re: two
# Matters    A check that counts messages or looks for each answer passes. Only what the model was shown tells that the
#            two turns did not see each other, and the conversation that later turns are built on never happened.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" --quiet --disable-pip-version-check install openai-agents==0.24.0
cat > "$work/run.py" <<'PY'
import asyncio
from agents import Agent, Model, ModelResponse, Runner, SQLiteSession, Usage, set_tracing_disabled
from openai.types.responses import ResponseOutputMessage, ResponseOutputText

set_tracing_disabled(True)
shown = []

def text_of(item):
    return item["content"] if isinstance(item["content"], str) else item["content"][0]["text"]

async def main():
    both_asked = asyncio.Event()

    class TwoAtOnce(Model):
        async def get_response(self, system_instructions, input, *rest, **options):
            shown.append([text_of(item) for item in input])
            if len(shown) == 2:
                both_asked.set()
            await asyncio.wait_for(both_asked.wait(), 30)
            text = ResponseOutputText(text=f"re: {shown and text_of(input[-1])}", type="output_text", annotations=[])
            reply = ResponseOutputMessage(
                id="m", type="message", role="assistant", status="completed", content=[text]
            )
            return ModelResponse(output=[reply], usage=Usage(), response_id=None)

        def stream_response(self, *rest, **options):
            raise NotImplementedError

    agent = Agent(name="clerk", instructions="Be brief.", model=TwoAtOnce())
    session = SQLiteSession("trip")
    await asyncio.gather(*(Runner.run(agent, text, session=session) for text in ("one", "two")))
    kept = [text_of(item) for item in await session.get_items()]
    print("shown", sorted(shown))
    print("kept", sorted(kept))
    print("questions first", [text.startswith("re:") for text in kept] == [False, False, True, True])

asyncio.run(main())
PY
"$work/venv/bin/python" "$work/run.py" | tee "$work/seen"
diff "$work/seen" - <<'SEEN' && echo "as described"
shown [['one'], ['two']]
kept ['one', 're: one', 're: two', 'two']
questions first True
SEEN

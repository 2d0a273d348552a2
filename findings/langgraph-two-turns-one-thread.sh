#!/usr/bin/env bash
# langgraph 1.2.24 with its InMemorySaver
#
# Expected   Two ainvoke() calls on one thread_id run one after the other, or the second is refused.
# Behaviour  Both read the same checkpoint, both return their reply, and the checkpoint that is written last replaces the
#            other: one acknowledged turn, question and answer, is gone from the thread without an error.
# Seen       replies: re: one, re: two / each model call was shown only its own question / state: two, re: two
# Matters    A user who sends a second message before the first is answered, or a client that retries, loses a turn that
#            was answered. The library offers no lock here; the service around it has to let one turn of a thread run
#            at a time, across all its processes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" --quiet --disable-pip-version-check install langgraph==1.2.24
cat > "$work/run.py" <<'PY'
import asyncio
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph

shown = []

async def main():
    both_asked = asyncio.Event()

    async def model(state):
        shown.append([message.content for message in state["messages"]])
        if len(shown) == 2:
            both_asked.set()
        await asyncio.wait_for(both_asked.wait(), 30)
        return {"messages": [("assistant", "re: " + state["messages"][-1].content)]}

    graph = StateGraph(MessagesState)
    graph.add_node("model", model)
    graph.add_edge(START, "model")
    graph.add_edge("model", END)
    app = graph.compile(checkpointer=InMemorySaver())
    thread = {"configurable": {"thread_id": "trip"}}
    turns = [app.ainvoke({"messages": [("user", text)]}, thread) for text in ("one", "two")]
    replies = [state["messages"][-1].content for state in await asyncio.gather(*turns)]
    kept = [message.content for message in (await app.aget_state(thread)).values["messages"]]
    print("replies", sorted(replies))
    print("shown", sorted(shown))
    print("messages kept", len(kept), "of 4; they are one turn:", kept[1] == f"re: {kept[0]}")

asyncio.run(main())
PY
LANGSMITH_TRACING=false "$work/venv/bin/python" "$work/run.py" | tee "$work/seen"
diff "$work/seen" - <<'SEEN' && echo "as described"
replies ['re: one', 're: two']
shown [['one'], ['two']]
messages kept 2 of 4; they are one turn: True
SEEN

// Runs one JavaScript module as a target: JSON objects by the line on standard input and output.
//
//     node host.mjs FILE.mjs
//
// The other end is lines.py, the protocol is told in host.py. The module exports an async function
// turn(user, session, prompt), and may export history(user, session), setup() and DECLARES.

import readline from "node:readline"
import { pathToFileURL } from "node:url"

const write = process.stdout.write.bind(process.stdout)
console.log = console.info = console.error // what the module prints must not be among the answers
const say = (answer) => write(JSON.stringify(answer) + "\n")

const target = await import(pathToFileURL(process.argv[2]).href)
await target.setup?.()

async function answer({ op, user, session, prompt, turn_id }) {
  try {
    if (op === "history") return { prompts: target.history ? await target.history(user, session) : null }
    return { reply: await target.turn(user, session, prompt, turn_id) }
  } catch (error) {
    return { error: `${error?.name}: ${error?.message}` }
  }
}

say({ ready: { has_history: Boolean(target.history), ...target.DECLARES } })
for await (const line of readline.createInterface({ input: process.stdin })) {
  const asked = JSON.parse(line)
  answer(asked).then((told) => say({ id: asked.id, ...told }))
}
process.exit(0)

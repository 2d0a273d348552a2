// OpenAI Agents SDK for JavaScript, with its in-memory session and its default model interface.
//
// Source: https://openai.github.io/openai-agents-js/guides/sessions/ (MemorySession).

import { Agent, MemorySession, run, setTracingDisabled } from "@openai/agents"

export const ENVIRONMENT = "openai-agents-js"
export const REQUIRES = ["@openai/agents@0.20.0", "node@22.23.3"]
export const DECLARES = {
  version: "0.20.0",
  notes: "The SDK promises that a session keeps the conversation between runs; it does not promise that two runs of one session are serial.",
}

setTracingDisabled(true)
const agent = new Agent({ name: "assistant", instructions: "Be brief.", model: "gpt-5" })
const sessions = new Map()

function sessionOf(user, session) {
  const key = JSON.stringify([user, session])
  if (!sessions.has(key)) sessions.set(key, new MemorySession())
  return sessions.get(key)
}

export async function turn(user, session, prompt) {
  const result = await run(agent, prompt, { session: sessionOf(user, session) })
  return String(result.finalOutput)
}

export async function history(user, session) {
  const items = await sessionOf(user, session).getItems()
  return items
    .filter((item) => item.role === "user")
    .map((item) => (typeof item.content === "string" ? item.content : item.content.map((part) => part.text ?? "").join("")))
}

// Mastra: an agent with its memory on LibSQL (a SQLite file), a thread for each session.
//
// Source: https://mastra.ai/docs/memory/overview (Memory, thread, resource, lastMessages).

import { Agent } from "@mastra/core/agent"
import { LibSQLStore } from "@mastra/libsql"
import { Memory } from "@mastra/memory"

export const ENVIRONMENT = "mastra"
export const REQUIRES = ["@mastra/core@1.71.0", "@mastra/memory@1.31.0", "@mastra/libsql@1.23.1", "node@22.23.3"]
export const DECLARES = {
  version: "1.71.0",
  promises: ["apart", "kept", "whole", "ordered", "durable", "service"],
  notes: "lastMessages is 1000 here, so that no turn is left out of the context; the default is smaller.",
}

const storage = new LibSQLStore({ id: "store", url: `file:${process.env.KODE_LAB_DATA}/mastra.db` })
const memory = new Memory({ storage, options: { lastMessages: 1000 } })
const agent = new Agent({
  id: "assistant",
  name: "assistant",
  instructions: "Be brief.",
  model: { id: "anthropic/claude-sonnet-4-5", url: process.env.ANTHROPIC_BASE_URL + "/v1", apiKey: "simulated" },
  memory,
})

export async function turn(user, session, prompt) {
  const result = await agent.generate(prompt, { memory: { thread: `${user}/${session}`, resource: user } })
  return result.text
}

export async function history(user, session) {
  const { messages } = await memory.recall({ threadId: `${user}/${session}`, resourceId: user, perPage: false })
  return messages
    .filter(({ role }) => role === "user")
    .map(({ content }) => content.parts.map((part) => part.text ?? "").join(""))
}

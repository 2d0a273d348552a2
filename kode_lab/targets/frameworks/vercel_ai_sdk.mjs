// Vercel AI SDK, with the messages that its documentation tells an application to keep.
//
// Source: https://ai-sdk.dev/docs/ai-sdk-core/generating-text (generateText, messages) and
// https://ai-sdk.dev/docs/ai-sdk-ui/chatbot-message-persistence (load, generate, save).

import { createAnthropic } from "@ai-sdk/anthropic"
import { generateText } from "ai"

export const ENVIRONMENT = "vercel-ai-sdk"
export const REQUIRES = ["ai@7.0.173", "@ai-sdk/anthropic@4.0.105", "node@22.23.3"]
export const DECLARES = {
  version: "7.0.173",
  notes: "The SDK keeps no sessions: an application loads the messages, generates, and saves. What is seen is that pattern.",
}

const anthropic = createAnthropic({ baseURL: process.env.ANTHROPIC_BASE_URL + "/v1" })
const chats = new Map()

export async function turn(user, session, prompt) {
  const key = JSON.stringify([user, session])
  const messages = [...(chats.get(key) ?? []), { role: "user", content: prompt }]
  const { text } = await generateText({ model: anthropic("claude-sonnet-4-5"), messages })
  chats.set(key, [...messages, { role: "assistant", content: text }])
  return text
}

export function history(user, session) {
  const messages = chats.get(JSON.stringify([user, session])) ?? []
  return messages.filter(({ role }) => role === "user").map(({ content }) => content)
}

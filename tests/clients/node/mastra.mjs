// Mastra agents over two formats: memory of the caller, a tool, structured output.
import { Agent } from '@mastra/core/agent';
import { createTool } from '@mastra/core/tools';
import { createOpenAI } from '@ai-sdk/openai';
import { z } from 'zod';
import { PROMPT, URL_, assert, check, positions, run, session } from './harness.mjs';

const openai = createOpenAI({ apiKey: 'any', baseURL: `${URL_}/v1` });
const create_schedule = createTool({
  id: 'create_schedule',
  description: 'Create a schedule.',
  inputSchema: z.object({ title: z.string(), start: z.string() }),
  execute: async (given) => ({ schedule_id: 7, ...(given.context ?? given) }),
});

for (const [name, model] of [
  ['responses', openai('gpt-5.4')],
  ['chat', openai.chat('gpt-5.4')],
]) {
  const agent = () =>
    new Agent({ id: 'a', name: 'a', instructions: 'Be brief.', model, tools: { create_schedule } });

  check(`${name}: two turns, tool, stream`, async () => {
    const next = session();
    const [first, second] = [next(), next()];
    const asked = agent();
    const one = await asked.generate(`${PROMPT} ${first}`);
    assert(one.text.includes('7'), one.text);
    const messages = [
      { role: 'user', content: `${PROMPT} ${first}` },
      { role: 'assistant', content: one.text },
      { role: 'user', content: second },
    ];
    const two = await asked.stream(messages);
    let text = '';
    for await (const piece of two.textStream) text += piece;
    assert(text.includes(second), text);
    await positions(first, second);
  });

  check(`${name}: structured output`, async () => {
    const schema = z.object({ title: z.string(), stars: z.number().int() });
    const reply = await agent().generate('Rate it.', { structuredOutput: { schema } });
    assert(Number.isInteger(reply.object.stars), JSON.stringify(reply.object));
  });
}

await run('Mastra', '@mastra/core');

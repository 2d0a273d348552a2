// @anthropic-ai/sdk: streams, tool runner, parse, threads.
import Anthropic from '@anthropic-ai/sdk';
import { betaZodTool, betaZodOutputFormat } from '@anthropic-ai/sdk/helpers/beta/zod';
import { z } from 'zod';
import { PROMPT, URL_, assert, check, positions, run, session, witnessed } from './harness.mjs';

const client = new Anthropic({ apiKey: 'any', baseURL: URL_ });
const model = 'claude-sonnet-5-5';

check('two turns, streamed', async () => {
  const next = session();
  const [first, second] = [next(), next()];
  const messages = [{ role: 'user', content: first }];
  const reply = await client.messages.stream({ model, max_tokens: 200, messages }).finalMessage();
  messages.push({ role: 'assistant', content: reply.content }, { role: 'user', content: second });
  await client.messages.create({ model, max_tokens: 200, messages });
  await positions(first, second);
});

check('tool runner (threads)', async () => {
  const marker = session()();
  const tool = betaZodTool({
    name: 'create_schedule',
    description: 'Create a schedule.',
    inputSchema: z.object({ title: z.string(), start: z.string() }),
    run: async (given) => JSON.stringify({ schedule_id: 7, ...given }),
  });
  const messages = [{ role: 'user', content: `${PROMPT} ${marker}` }];
  const reply = await client.beta.messages.toolRunner({ model, max_tokens: 500, tools: [tool], messages });
  assert(reply.content.at(-1).text.includes('7'), JSON.stringify(reply.content));
  assert((await witnessed(marker)).calls.length === 2);
});

check('parse with zod', async () => {
  const reply = await client.beta.messages.parse({
    model,
    max_tokens: 300,
    messages: [{ role: 'user', content: 'Rate it.' }],
    output_format: betaZodOutputFormat(z.object({ title: z.string(), stars: z.number().int() })),
  });
  assert(Number.isInteger(reply.parsed_output.stars));
});

await run('@anthropic-ai/sdk', '@anthropic-ai/sdk');

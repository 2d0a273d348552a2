// openai for JavaScript, and OpenAI Agents for JavaScript.
import OpenAI from 'openai';
import { Agent, MemorySession, OpenAIChatCompletionsModel, OpenAIResponsesModel, run as ask, setTracingDisabled, tool } from '@openai/agents';
import { z } from 'zod';
import { PROMPT, URL_, assert, check, positions, run, session } from './harness.mjs';

setTracingDisabled(true);
const client = new OpenAI({ apiKey: 'any', baseURL: `${URL_}/v1` });
const model = 'gpt-5.4';

check('SDK: chat streamed, responses continued', async () => {
  const next = session();
  const [first, second] = [next(), next()];
  const stream = client.chat.completions.stream({ model, messages: [{ role: 'user', content: first }] });
  assert((await stream.finalContent()).includes(first));
  const one = await client.responses.create({ model, input: first });
  const two = client.responses.stream({ model, input: second, previous_response_id: one.id });
  assert((await two.finalResponse()).output_text.includes(second));
  await positions(first, second);
});

const book = () =>
  tool({
    name: 'create_schedule',
    description: 'Create a schedule.',
    parameters: z.object({ title: z.string(), start: z.string() }),
    execute: async (given) => JSON.stringify({ schedule_id: 7, ...given }),
  });

for (const [name, made] of [
  ['responses', () => new OpenAIResponsesModel(client, model)],
  ['chat', () => new OpenAIChatCompletionsModel(client, model)],
]) {
  check(`Agents, ${name}: session, tool, streamed`, async () => {
    const next = session();
    const [first, second, third] = [next(), next(), next()];
    const agent = new Agent({ name: 'a', instructions: 'Be brief.', model: made(), tools: [book()] });
    const memory = new MemorySession();
    const reply = await ask(agent, `${PROMPT} ${first}`, { session: memory });
    assert(reply.finalOutput.includes('7'), reply.finalOutput);
    await ask(agent, second, { session: memory });
    const streamed = await ask(agent, third, { session: memory, stream: true });
    for await (const _ of streamed) void _;
    await streamed.completed;
    await positions(first, second, third);
  });

  check(`Agents, ${name}: outputType`, async () => {
    const outputType = z.object({ title: z.string(), stars: z.number().int() });
    const agent = new Agent({ name: 'a', model: made(), outputType });
    assert(Number.isInteger((await ask(agent, 'Rate it.')).finalOutput.stars));
  });
}

await run('openai, OpenAI Agents (JavaScript)', '@openai/agents');

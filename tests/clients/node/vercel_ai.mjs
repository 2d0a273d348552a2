// Vercel AI SDK: generateText, streamText, tools, objects, over four formats.
import { createAnthropic } from '@ai-sdk/anthropic';
import { createGoogleGenerativeAI } from '@ai-sdk/google';
import { createOpenAI } from '@ai-sdk/openai';
import * as ai from 'ai';
import { z } from 'zod';
import { PROMPT, URL_, assert, check, positions, run, session } from './harness.mjs';

const openai = createOpenAI({ apiKey: 'any', baseURL: `${URL_}/v1` });
const models = {
  messages: createAnthropic({ apiKey: 'any', baseURL: `${URL_}/v1` })('claude-sonnet-5-5'),
  responses: openai('gpt-5.4'),
  chat: openai.chat('gpt-5.4'),
  gemini: createGoogleGenerativeAI({ apiKey: 'any', baseURL: `${URL_}/v1beta` })('gemini-3-flash'),
};
const tools = {
  create_schedule: ai.tool({
    description: 'Create a schedule.',
    inputSchema: z.object({ title: z.string(), start: z.string() }),
    execute: async (given) => ({ schedule_id: 7, ...given }),
  }),
};
const schema = z.object({ title: z.string(), stars: z.number().int() });

for (const [name, model] of Object.entries(models)) {
  check(`${name}: two turns, tool, streamText`, async () => {
    const next = session();
    const [first, second] = [next(), next()];
    const stopWhen = (ai.isStepCount ?? ai.stepCountIs)(5);
    const messages = [{ role: 'user', content: `${PROMPT} ${first}` }];
    const one = await ai.generateText({ model, tools, stopWhen, messages });
    assert(one.text.includes('7'), one.text);
    messages.push(...(one.responseMessages ?? one.response.messages), { role: 'user', content: second });
    const two = ai.streamText({ model, tools, stopWhen, messages });
    let text = '';
    for await (const piece of two.textStream) text += piece;
    assert(text.includes(second), text);
    await positions(first, second);
  });

  check(`${name}: an object that fits a schema`, async () => {
    const asked = { model, prompt: 'Rate it.' };
    const object = ai.generateObject
      ? (await ai.generateObject({ ...asked, schema })).object
      : (await ai.generateText({ ...asked, output: ai.Output.object({ schema }) })).output;
    assert(Number.isInteger(object.stars));
  });
}

await run('Vercel AI SDK', 'ai');

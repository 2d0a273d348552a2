// @google/genai: chat, stream, function calling.
import { GoogleGenAI } from '@google/genai';
import { URL_, assert, check, positions, run, session } from './harness.mjs';

const client = new GoogleGenAI({ apiKey: 'any', httpOptions: { baseUrl: URL_ } });
const model = 'gemini-3-flash';

check('chat of two turns, streamed and not', async () => {
  const next = session();
  const [first, second] = [next(), next()];
  const chat = client.chats.create({ model });
  assert((await chat.sendMessage({ message: first })).text.includes(first));
  let text = '';
  for await (const piece of await chat.sendMessageStream({ message: second })) text += piece.text ?? '';
  assert(text.includes(second));
  await positions(first, second);
});

check('function call, response schema', async () => {
  const parametersJsonSchema = { type: 'object', properties: { n: { type: 'integer' } }, required: ['n'] };
  const tools = [{ functionDeclarations: [{ name: 'count_up', parametersJsonSchema }] }];
  const reply = await client.models.generateContent({ model, contents: 'use tool count_up', config: { tools } });
  assert(Number.isInteger(reply.functionCalls[0].args.n));
  const config = { responseMimeType: 'application/json', responseJsonSchema: parametersJsonSchema };
  const shaped = await client.models.generateContent({ model, contents: 'Rate it.', config });
  assert(Number.isInteger(JSON.parse(shaped.text).n));
});

await run('@google/genai', '@google/genai');

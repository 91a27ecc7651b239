// Ollama's client for Node.

import assert from 'node:assert/strict';
import { env } from 'node:process';
import { test } from 'node:test';
import { Ollama } from 'ollama';

import { becomesIdle, CAPTION, IMAGE, MODEL } from './support.mjs';

const client = new Ollama({ host: env.CUTLINE_URL });
const messages = [{ role: 'user', content: 'Describe it.', images: [IMAGE] }];

test('the models', async () => {
  assert.deepEqual((await client.list()).models.map((model) => model.model), [`${MODEL}:latest`]);
  assert.equal((await client.ps()).models[0].model, `${MODEL}:latest`);
  assert.deepEqual((await client.show({ model: MODEL })).capabilities, ['completion', 'vision']);
  assert.ok((await client.version()).version);
});

test('generate', async () => {
  const answer = await client.generate({ model: MODEL, prompt: '', images: [IMAGE] });
  assert.equal(answer.response, CAPTION);
  assert.ok(answer.done && answer.eval_count > 0);
});

test('a chat, whole and streamed', async () => {
  const answer = await client.chat({ model: MODEL, messages });
  assert.equal(answer.message.content, CAPTION);
  let text = '';
  for await (const part of await client.chat({ model: MODEL, messages, stream: true })) text += part.message.content;
  assert.equal(text, CAPTION);
});

test('a structured answer', async () => {
  const format = { type: 'object', properties: { caption: { type: 'string' } }, required: ['caption'] };
  const answer = await client.chat({ model: MODEL, messages, format });
  assert.deepEqual(JSON.parse(answer.message.content), { caption: CAPTION });
});

test('errors', async () => {
  const unknown = client.generate({ model: 'llava', prompt: '', images: [IMAGE] });
  await assert.rejects(unknown, (error) => error.status_code === 404 && /not found/.test(error.message));
  const keyless = new Ollama({ host: env.CUTLINE_KEYED_URL });
  await assert.rejects(keyless.list(), (error) => error.status_code === 401);
  const keyed = new Ollama({ host: env.CUTLINE_KEYED_URL, headers: { Authorization: `Bearer ${env.CUTLINE_KEY}` } });
  assert.equal((await keyed.list()).models.length, 1);
});

test('an aborted stream stops the work', async () => {
  const options = { temperature: 1.5, num_predict: 100 };
  const stream = await client.generate({ model: MODEL, prompt: '', images: [IMAGE], options, stream: true });
  const read = async () => {
    for await (const _ of stream) stream.abort();
  };
  await assert.rejects(read(), { name: 'AbortError' });
  await becomesIdle();
});

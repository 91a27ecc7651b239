// OpenAI's SDK for Node.

import assert from 'node:assert/strict';
import { env } from 'node:process';
import { test } from 'node:test';
import OpenAI from 'openai';

import { becomesIdle, CAPTION, IMAGE, MODEL } from './support.mjs';

const url = `data:image/jpeg;base64,${IMAGE.toString('base64')}`;
const messages = [
  { role: 'user', content: [{ type: 'text', text: 'Describe it.' }, { type: 'image_url', image_url: { url } }] },
];
const input = [
  { role: 'user', content: [{ type: 'input_text', text: 'Describe it.' }, { type: 'input_image', image_url: url, detail: 'auto' }] },
];
const connect = (base = env.CUTLINE_URL, apiKey = 'any') => new OpenAI({ baseURL: `${base}/v1`, apiKey, maxRetries: 0 });
const client = connect();

test('the models', async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  assert.deepEqual(ids, [MODEL]);
  assert.equal((await client.models.retrieve(MODEL)).id, MODEL);
});

test('a caption and its usage', async () => {
  const answer = await client.chat.completions.create({ model: MODEL, messages });
  assert.equal(answer.choices[0].message.content, CAPTION);
  assert.equal(answer.choices[0].finish_reason, 'stop');
  assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens);
  assert.ok(answer._request_id);
});

test('a stream with usage', async () => {
  const stream = await client.chat.completions.create({
    model: MODEL, messages, stream: true, stream_options: { include_usage: true },
  });
  let text = '';
  let usage;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? '';
    usage = chunk.usage;
  }
  assert.equal(text, CAPTION);
  assert.ok(usage.total_tokens > 100);
});

test('the helper for streams', async () => {
  const stream = client.chat.completions.stream({ model: MODEL, messages });
  assert.equal(await stream.finalContent(), CAPTION);
});

test('a structured answer', async () => {
  const schema = {
    type: 'object', properties: { caption: { type: 'string' } }, required: ['caption'], additionalProperties: false,
  };
  const answer = await client.chat.completions.parse({
    model: MODEL, messages, response_format: { type: 'json_schema', json_schema: { name: 'photo', schema, strict: true } },
  });
  assert.deepEqual(JSON.parse(answer.choices[0].message.content), { caption: CAPTION });
});

test('responses, whole and streamed', async () => {
  const answer = await client.responses.create({ model: MODEL, input });
  assert.equal(answer.output_text, CAPTION);
  const stream = client.responses.stream({ model: MODEL, input });
  assert.equal((await stream.finalResponse()).output_text, CAPTION);
});

test('errors have their classes', async () => {
  const hello = [{ role: 'user', content: 'Hello' }];
  const ask = (sdk, model, messages) => sdk.chat.completions.create({ model, messages });
  await assert.rejects(ask(client, MODEL, hello), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.code, 'image_required');
    return true;
  });
  await assert.rejects(ask(client, 'gpt-4o', messages), OpenAI.NotFoundError);
  await assert.rejects(ask(connect(env.CUTLINE_KEYED_URL, 'wrong'), MODEL, messages), OpenAI.AuthenticationError);
  assert.ok(await ask(connect(env.CUTLINE_KEYED_URL, env.CUTLINE_KEY), MODEL, messages));
});

test('an aborted stream stops the work', async () => {
  const stream = await client.chat.completions.create({
    model: MODEL, messages, stream: true, cutline: { min_new_tokens: 100, max_new_tokens: 100, cache: 'bypass' },
  });
  for await (const _ of stream) {
    stream.controller.abort();
    break;
  }
  await becomesIdle();
});

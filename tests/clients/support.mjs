// What the tests of the clients in JavaScript share. .ci/clients starts the servers and sets the variables.

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { env } from 'node:process';
import { fileURLToPath } from 'node:url';

export const MODEL = env.CUTLINE_MODEL ?? 'cutline-small';
export const PHOTOS = fileURLToPath(new URL('../../assets', import.meta.url));
export const PHOTO = `${PHOTOS}/cat.jpg`;
export const IMAGE = await readFile(PHOTO);

const headers = { 'content-type': 'image/jpeg' };
const native = await fetch(`${env.CUTLINE_URL}/caption/generate`, { method: 'POST', headers, body: IMAGE });

/** The caption that the native endpoint gives, which all contracts must give. */
export const CAPTION = (await native.json()).caption;

/** Waits until the server holds nothing, and fails if it does not let go. */
export async function becomesIdle() {
  const end = Date.now() + 10_000;
  for (;;) {
    const health = await (await fetch(`${env.CUTLINE_URL}/health`)).json();
    const held = health.in_flight + health.queue.depth + health.queue.reserved;
    if (held === 0) return;
    assert.ok(Date.now() < end, JSON.stringify(health));
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

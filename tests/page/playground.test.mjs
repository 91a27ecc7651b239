// node playground.test.mjs URL [FOLDER]: tests the playground of prompts of the server at URL in headless
// Chromium and writes screenshots to FOLDER. The server uses the embedded model and no API keys, and has a library.

import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { findings, launch, scrollsSideways, visit } from './browser.mjs';

const [url, folder] = process.argv.slice(2);
if (!url) throw new Error('node playground.test.mjs URL [FOLDER]');
const PLAYGROUND = new URL('playground', url).href;
const ASSETS = new URL('../../assets/', import.meta.url).pathname;
const ALL = ['minor', 'moderate', 'serious', 'critical'];

let browser;
before(async () => {
  browser = await launch();
  if (folder) await mkdir(folder, { recursive: true });
});
after(() => browser?.close());

const open = (options = {}) => visit(browser, PLAYGROUND, { ready: '.version', ...options });
const choose = (page, ...names) => page.locator('#photos').setInputFiles(names.map((name) => join(ASSETS, name)));
const cells = (page) => page.locator('.results td').allTextContents();

async function compare(page) {
  await page.getByRole('button', { name: 'Compare' }).click();
  await page.waitForFunction(() => document.getElementById('count').textContent === 'Done');
}

/** Asserts that axe finds nothing at all, in light and in dark, and writes screenshots. */
async function accessible(page, name) {
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme });
    assert.deepEqual(await findings(page, ALL), [], `${name}, ${colorScheme}`);
    if (folder) await page.screenshot({ path: join(folder, `playground-${name}-${colorScheme}.png`), fullPage: true });
  }
  await page.emulateMedia({ colorScheme: null });
}

test('versions are compared side by side, and saved', async () => {
  const { page, context, seen } = await open();
  await accessible(page, 'empty');
  await page.getByRole('button', { name: 'Compare' }).click();
  assert.match(await page.locator('#error').textContent(), /no photos/);
  await choose(page, 'cat.jpg', 'coffee.jpg');
  await compare(page);
  const [caption, engaging] = await cells(page);
  assert.ok(engaging.toLowerCase().includes(caption.split(' ').at(-1).toLowerCase()), engaging);
  assert.ok(await page.locator('.results ins').count() > 0, 'differences are marked');
  assert.equal(await page.locator('.results del').count() > 0, true);

  await page.locator('#add').click();
  await page.locator('#add').click();
  assert.equal(await page.locator('#add').isVisible(), false, 'four at most');
  await page.locator('#kind-2').selectOption('chain');
  await page.locator('#template-2').fill('{{ title }} and {{ more }}');
  await page.locator('#variables-2').fill('{"more": "<b>more</b>"}');
  const name = `play-${Date.now()}`;
  await page.locator('#name-2').fill(name);
  await page.locator('.version').nth(2).getByRole('button', { name: 'Save as version' }).click();
  await page.waitForFunction((name) => document.getElementById('count').textContent === `Saved as ${name}:1`, name);
  await page.locator('#kind-3').selectOption('saved');
  await page.locator('#reference-3').fill(`${name}:1`);
  await page.locator('#variables-3').fill('{"more": "<b>more</b>"}');
  await compare(page);
  const texts = await cells(page);
  assert.equal(texts.length, 8);
  assert.match(texts[2], /<b>more<\/b>/, 'values are data');
  assert.equal(texts[3], texts[2], 'what was saved says the same');
  await accessible(page, 'full');
  assert.deepEqual([seen.strangers, seen.complaints], [[], []]);
  await context.close();
});

test('mistakes are told where they were made', async () => {
  const { page, context } = await open();
  await choose(page, 'cat.jpg');
  await page.locator('#kind-1').selectOption('prefix');
  await page.locator('#template-1').fill('{{ nothing }}');
  await compare(page);
  assert.match((await cells(page))[1], /variable/);
  await page.locator('#name-1').fill('not a name');
  await page.locator('.version').nth(1).getByRole('button', { name: 'Save as version' }).click();
  await page.locator('#error').waitFor();
  assert.match(await page.locator('#error').textContent(), /letters/);
  await context.close();
});

test('a narrow window shows everything', async () => {
  const { page, context } = await open({ viewport: { width: 360, height: 740 } });
  await choose(page, 'cat.jpg');
  await compare(page);
  assert.equal(await scrollsSideways(page), false);
  await accessible(page, 'narrow');
  await context.close();
});

// node gallery.test.mjs URL [FOLDER]: tests the gallery of the server at URL in headless Chromium and writes
// screenshots to FOLDER. The server uses the embedded model and no API keys, and its library has the photos in
// assets/, captioned by `cutline caption`.

import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { isDeepStrictEqual } from 'node:util';
import { findings, launch, scrollsSideways, visit } from './browser.mjs';

const [url, folder] = process.argv.slice(2);
if (!url) throw new Error('node gallery.test.mjs URL [FOLDER]');
const GALLERY = new URL('gallery', url).href;
const PHOTOS = ['astronaut.jpg', 'cat.jpg', 'coffee.jpg', 'rocket.jpg'];
const ALL = ['minor', 'moderate', 'serious', 'critical'];
const REFUSED = /Failed to load resource: the server responded with a status of (\d+)/;

let browser;
before(async () => {
  browser = await launch();
  if (folder) await mkdir(folder, { recursive: true });
});
after(() => browser?.close());

async function api(path, body, { method = 'POST', headers = {} } = {}) {
  const init = body === undefined ? {} : {
    method, body: JSON.stringify(body), headers: { 'content-type': 'application/json', ...headers },
  };
  const response = await fetch(new URL(`library/${path}`, url), init);
  assert.ok(response.ok, `${path}: ${response.status} ${await response.clone().text()}`);
  return response.json();
}

/** The photo of this name. */
async function stored(name) {
  const { items } = await api(`assets?q=${encodeURIComponent(`name:${name.split('.')[0]}`)}`);
  assert.equal(items.length, 1, name);
  return items[0];
}
const textOf = (photo, field = 'caption') => photo.texts.find((text) => text.field === field);

/** Somebody else changes a text. */
async function write(name, text, field = 'caption') {
  const photo = await stored(name);
  const action = text ? { action: 'write', text } : { action: 'clear' };
  return api(`assets/${photo.hash}/texts/${field}`, action, { method: 'PATCH', headers: { 'if-match': `"${photo.version}"` } });
}

const open = (path = '', options = {}) => visit(browser, `${GALLERY}${path}`, { ready: '.cell img[src]', ...options });
const cell = (page, name) => page.locator('.cell').filter({ hasText: name });
const names = (page) => page.locator('.cell .name').allTextContents();
const said = (page, text) => page.waitForFunction((text) => document.getElementById('live').textContent.includes(text), text);
const focused = (page) => page.evaluate(() => document.activeElement.textContent);

/** The text that a cell shows. */
const words = (page, name) => cell(page, name).locator('.text').textContent();

async function until(check, what) {
  for (let n = 0; n < 200; n += 1) {
    if (await check()) return;
    await new Promise((done) => setTimeout(done, 25));
  }
  assert.fail(what);
}

/** Asserts that only the expected requests failed, and that no other host was contacted. */
function clean(seen, statuses = []) {
  assert.deepEqual(seen.strangers, []);
  assert.deepEqual(seen.complaints.filter((text) => !REFUSED.test(text)), []);
  assert.deepEqual(seen.complaints.map((text) => text.match(REFUSED)[1]), statuses.map(String));
}

/** Asserts that axe finds nothing at all, in light and in dark, and writes screenshots. */
async function accessible(page, name) {
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme });
    assert.deepEqual(await findings(page, ALL), [], `${name}, ${colorScheme}`);
    if (folder) await page.screenshot({ path: join(folder, `gallery-${name}-${colorScheme}.png`) });
  }
  await page.emulateMedia({ colorScheme: null });
}

test('photos are shown, searched and filtered', async () => {
  const { page, context, seen } = await open();
  assert.deepEqual((await names(page)).sort(), PHOTOS);
  assert.equal(await page.locator('#count').textContent(), '4 photos');
  const pictures = await page.locator('.cell img').evaluateAll(async (all) => {
    await Promise.all(all.map((one) => one.decode()));
    return all.map((one) => Math.max(one.naturalWidth, one.naturalHeight));
  });
  // As many pixels as the embedded model sees.
  assert.deepEqual(pictures, [224, 224, 224, 224]);
  await accessible(page, 'grid');

  // While somebody types, the last word is the beginning of one, and only the last answer counts.
  const word = textOf(await stored('cat.jpg')).text.split(' ').at(-1);
  await page.locator('#q').pressSequentially(`name:cat ${word.slice(0, -1)}`, { delay: 20 });
  await page.waitForFunction(() => document.querySelectorAll('.cell').length === 1);
  assert.deepEqual(await names(page), ['cat.jpg']);
  assert.match(page.url(), /\?q=name%3Acat\+/);
  await page.locator('#q').fill('"never closed');
  await page.locator('#problem').waitFor();
  assert.match(await page.locator('#problem').textContent(), /quotation mark is not closed/);
  assert.deepEqual(await names(page), ['cat.jpg'], 'what was found stays');
  await page.locator('#q').fill('zebra');
  await page.locator('#nothing-found').waitFor();
  assert.equal(await page.locator('#problem').isVisible(), false);
  await page.locator('#q').fill('');
  await page.waitForFunction(() => document.querySelectorAll('.cell').length === 4);

  // Filters come from the facets, and are in the address.
  const { mood } = await stored('coffee.jpg');
  await page.locator(`[data-token="mood:${mood}"]`).click();
  await page.waitForFunction(() => document.querySelector('[aria-pressed="true"]'));
  await until(async () => (await names(page)).length < 4, 'the filter has no effect');
  assert.ok((await names(page)).includes('coffee.jpg'));
  const address = page.url();
  assert.match(address, new RegExp(`filter=mood%3A${mood}`));
  await page.getByRole('button', { name: 'Clear filters' }).click();
  await page.waitForFunction(() => document.querySelectorAll('.cell').length === 4);
  await page.goto(address);
  await page.locator('[aria-pressed="true"]').waitFor();
  await page.locator('#sort').selectOption('confidence');
  await until(async () => /sort=confidence/.test(page.url()), 'the order is not in the address');
  clean(seen, [422]);
  await context.close();
});

test('captions are edited with the keyboard alone', async () => {
  const { page, context, seen } = await open('?sort=added');
  const order = await names(page);
  await page.locator('#q').press('ArrowDown');
  await page.keyboard.press('ArrowRight');
  await page.keyboard.press('ArrowLeft');
  await page.keyboard.press('End');
  assert.match(await focused(page), new RegExp(order.at(-1)));
  await page.keyboard.press('Home');
  assert.match(await focused(page), new RegExp(order[0]));
  const before = await words(page, order[0]);
  await page.keyboard.press('Enter');
  await page.keyboard.type('something else');
  await accessible(page, 'edit');
  await page.keyboard.press('Escape');
  assert.equal(await words(page, order[0]), before);
  assert.match(await focused(page), new RegExp(order[0]), 'the focus is back');
  await page.keyboard.press('Enter');
  await page.keyboard.type('<b>Rex</b> & "friends"');
  await page.keyboard.press('Control+Enter');
  await said(page, 'Saved');
  assert.equal(await words(page, order[0]), '<b>Rex</b> & "friends"', 'texts are not markup');
  const photo = await stored(order[0]);
  assert.equal(textOf(photo).text, '<b>Rex</b> & "friends"');
  assert.equal(textOf(photo).author.kind, 'person');
  await page.keyboard.press('Enter');
  await page.keyboard.press('Control+a');
  await page.keyboard.press('Delete');
  await page.keyboard.press('Enter');
  await said(page, 'Deleted');
  assert.equal(await words(page, order[0]), 'deleted');
  // Back to what it was.
  const history = await api(`assets/${photo.hash}/history`);
  const first = history.filter(({ field }) => field === 'caption').at(-1);
  await page.keyboard.press('Space');
  await page.locator('#detail[open]').waitFor();
  await page.locator('#detail-history summary').click();
  const items = page.locator('#history li');
  await items.first().waitFor();
  assert.equal(await items.count(), history.length);
  assert.match(await items.first().textContent(), /a person deleted the caption/);
  assert.ok((await page.locator('#history del').allTextContents()).some((text) => text.includes('<b>Rex</b>')));
  await accessible(page, 'detail');
  await items.last().getByRole('button', { name: 'Go back to this caption' }).click();
  await said(page, 'It is back');
  assert.equal(textOf(await stored(order[0])).text, first.text);
  await page.keyboard.press('Escape');
  assert.match(await focused(page), new RegExp(order[0]));
  assert.equal(await words(page, order[0]), first.text);
  clean(seen);
  await context.close();
});

test('a text that was changed meanwhile is shown, and nothing is lost', async () => {
  const { page, context, seen } = await open('?sort=added');
  const edit = async (text) => {
    await cell(page, 'coffee.jpg').locator('.words').click();
    await page.locator('.editor textarea').fill(text);
    await page.locator('.editor textarea').press('Enter');
  };
  await write('coffee.jpg', 'a cup of tea');
  await edit('a cup of black coffee');
  const dialog = page.getByRole('dialog', { name: 'Changed meanwhile' });
  await dialog.waitFor();
  assert.match(await dialog.textContent(), /a cup of tea/);
  assert.equal(await dialog.locator('del').textContent(), 'tea');
  assert.equal(await dialog.locator('ins').textContent(), 'black coffee');
  await accessible(page, 'conflict');
  await dialog.getByRole('button', { name: 'Back' }).click();
  assert.equal(await page.locator('.editor textarea').inputValue(), 'a cup of black coffee');
  await page.locator('.editor textarea').press('Enter');
  await dialog.getByRole('button', { name: 'Keep mine' }).click();
  await said(page, 'Saved');
  assert.equal(textOf(await stored('coffee.jpg')).text, 'a cup of black coffee');
  await write('coffee.jpg', 'theirs');
  await edit('mine');
  await dialog.getByRole('button', { name: 'Take theirs' }).click();
  await until(async () => (await words(page, 'coffee.jpg')) === 'theirs', 'theirs is not shown');
  assert.equal(textOf(await stored('coffee.jpg')).text, 'theirs');
  clean(seen, [412, 412, 412]);
  await context.close();
});

test('photos are captioned again, and suggestions decided one by one and together', async () => {
  const { page, context, seen } = await open('?sort=added');
  await cell(page, 'coffee.jpg').locator('.picture').click();
  await page.locator('#again-prompt').fill('a photo of');
  await page.locator('#again-go').click();
  await page.getByText('It waits as a suggestion').waitFor();
  const suggestion = textOf(await stored('coffee.jpg')).suggestion.text;
  assert.match(suggestion, /^a photo of /);
  assert.match(await page.locator('.suggestion ins').allTextContents().then((all) => all.join(' ')), /a photo of/);
  await accessible(page, 'suggestion');
  await page.keyboard.press('Escape');
  assert.match(await focused(page), /suggestion: a photo of/);
  await accessible(page, 'suggested');
  await page.keyboard.press('r');
  await said(page, 'Rejected');
  assert.equal(textOf(await stored('coffee.jpg')).suggestion, undefined);

  // All photos, as a run that shows how far it is.
  for (const name of PHOTOS) await write(name, `written by hand: ${name}`);
  await page.reload();
  await page.getByRole('button', { name: 'Caption all again' }).click();
  await page.getByText('4 photos. Those').waitFor();
  await page.locator('#all-beams').fill('2');
  await accessible(page, 'again');
  await page.getByRole('button', { name: 'Start' }).click();
  await page.locator('#runs[open]').waitFor();
  await page.getByText('done: 4 of 4 photos').waitFor({ timeout: 60_000 });
  await accessible(page, 'runs');
  await page.getByRole('button', { name: 'Close' }).last().click();
  await page.getByRole('button', { name: 'Review suggestions' }).click();
  await page.locator('[data-token="is:suggested"][aria-pressed="true"]').waitFor();
  await page.waitForFunction(() => document.querySelectorAll('[data-suggested]').length === 4);
  const texts = await Promise.all(PHOTOS.map(async (name) => textOf(await stored(name)).suggestion.text));
  await cell(page, 'cat.jpg').getByRole('button', { name: 'Accept the suggestion' }).click();
  await said(page, 'Accepted');
  assert.equal(textOf(await stored('cat.jpg')).text, texts[1]);

  // The rest together: counted first.
  await page.getByRole('button', { name: 'Change all' }).click();
  await page.getByText('3 of 3 photos would change.').waitFor();
  assert.equal(await page.locator('#bulk-samples li').count(), 3);
  await accessible(page, 'bulk');
  assert.equal(textOf(await stored('rocket.jpg')).text, 'written by hand: rocket.jpg', 'a rehearsal changes nothing');
  await page.getByRole('button', { name: 'Change 3 photos' }).click();
  await said(page, '3 photos changed');
  assert.equal(textOf(await stored('rocket.jpg')).text, texts[3]);
  await page.locator('#said button').click();
  await said(page, '3 texts taken back');
  assert.equal(textOf(await stored('rocket.jpg')).text, 'written by hand: rocket.jpg');

  // A run that is at work can be cancelled, and one that is done undone.
  const { id } = (await api('runs')).find(({ kind }) => kind === 'regenerate');
  const job = { run: id, state: 'running', total: 4, done: 1, written: 0, suggested: 1, unchanged: 0, unavailable: 0, failed: 0 };
  await page.route('**/library/jobs', (route) => route.fulfill({ json: [job] }));
  await page.getByRole('button', { name: 'Runs' }).click();
  await page.getByText('at work: 1 of 4 photos').waitFor();
  assert.equal(await page.locator('#runs progress').first().getAttribute('value'), '1');
  const cancelled = page.waitForRequest((request) => request.url().endsWith(`/library/jobs/${id}/cancel`));
  await page.getByRole('button', { name: `Cancel run ${id}` }).click();
  await cancelled;
  await page.unroute('**/library/jobs');
  await page.getByRole('button', { name: `Undo run ${id}` }).click();
  await said(page, 'Undone');
  clean(seen);
  await context.close();
});

test('photos are selected, and changed together', async () => {
  const { page, context, seen } = await open('?sort=added');
  const order = await names(page);
  const selected = () => page.locator('[data-selected] .name').allTextContents();
  // The cells are drawn after the click.
  const shows = (wanted) =>
    until(async () => isDeepStrictEqual(await selected(), wanted), `not ${wanted} are selected`);
  const box = (name) => cell(page, name).getByRole('checkbox', { name: `Select ${name}` });

  // With the mouse: one, and with Shift all up to another.
  await cell(page, order[0]).hover();
  await box(order[0]).check();
  await said(page, '1 photo selected');
  await box(order[2]).click({ modifiers: ['Shift'] });
  await said(page, '3 photos selected');
  await shows(order.slice(0, 3));
  await accessible(page, 'selected');
  await box(order[1]).uncheck();
  await shows([order[0], order[2]]);
  await page.getByRole('button', { name: 'Clear selection' }).click();
  await said(page, 'Nothing selected');
  await shows([]);
  assert.equal(await box(order[0]).isChecked(), false);

  // With the keyboard.
  await page.keyboard.press('Home');
  await page.keyboard.press('x');
  await page.keyboard.press('Shift+ArrowRight');
  await said(page, '2 photos selected');
  assert.match(await focused(page), new RegExp(`${order[1]}.*, selected`));
  await page.keyboard.press('Escape');
  await said(page, 'Nothing selected');
  await page.keyboard.press('Home');
  await page.keyboard.press('Shift+ArrowRight');
  await shows(order.slice(0, 2));

  // Only these are changed.
  await page.getByRole('button', { name: 'Caption 2 photos again' }).click();
  await page.getByText('2 photos. Those').waitFor();
  assert.match(await page.locator('#all-which').textContent(), /that are selected/);
  await page.keyboard.press('Escape');
  await page.getByRole('button', { name: 'Change 2 photos' }).click();
  await page.getByRole('dialog', { name: 'Change 2 photos' }).waitFor();
  await page.locator('#bulk-action').selectOption('add_tags');
  await page.locator('#bulk-text').fill('chosen');
  await page.getByText('2 of 2 photos would change.').waitFor();
  await accessible(page, 'bulk-selected');
  await page.locator('#bulk-go').click();
  await said(page, '2 photos changed');
  for (const name of PHOTOS) {
    const tags = textOf(await stored(name), 'tags')?.text.split('\n') ?? [];
    assert.equal(tags.includes('chosen'), order.indexOf(name) < 2, name);
  }
  await until(async () => (await selected()).length === 0, 'the selection stays');
  await page.locator('#said button').click();
  await said(page, '2 texts taken back');

  // Another search shows other photos.
  await page.locator('#q').press('ArrowDown');
  await page.keyboard.press('x');
  await said(page, '1 photo selected');
  await page.locator('#q').fill(`name:${order[3].split('.')[0]}`);
  await page.waitForFunction(() => document.querySelectorAll('.cell').length === 1);
  await page.getByRole('button', { name: 'Change all' }).waitFor();
  clean(seen);
  await context.close();
});

test('texts are rated, and similar photos shown', async () => {
  const { page, context, seen } = await open('?q=name:cat');
  const [{ up = 0, down = 0 } = {}] = await api('feedback');
  await cell(page, 'cat.jpg').locator('.picture').click();
  const caption = page.locator('[data-field="caption"]');
  await caption.getByRole('button', { name: 'Good caption', exact: true }).click();
  await page.getByText('Thank you, it is noted.').waitFor();
  await caption.getByRole('button', { name: 'Not good caption' }).click();
  await page.getByLabel('What is wrong with it?').fill('it is a dog');
  await page.keyboard.press('Enter');
  await until(async () => {
    const [row] = await api('feedback');
    return row?.up === up + 1 && row?.down === down + 1;
  }, 'the feedback is not stored');
  await page.locator('#detail-similar summary').click();
  await page.locator('#similar img').first().waitFor();
  assert.equal(await page.locator('#similar li').count(), 3);
  await accessible(page, 'similar');
  await page.locator('#similar button').first().click();
  await page.waitForFunction(() => document.getElementById('detail-title').textContent !== 'cat.jpg');
  clean(seen);
  await context.close();
});

test('on a phone everything has its place', async () => {
  const { page, context, seen } = await open('', { viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true });
  assert.equal(await scrollsSideways(page), false);
  assert.equal(await page.locator('#filters').getAttribute('open'), null);
  await accessible(page, 'phone');
  await page.locator('#filters summary').click();
  await page.locator('.filter').first().waitFor();
  assert.equal(await scrollsSideways(page), false);
  await accessible(page, 'phone-filters');
  await page.locator('#filters summary').click();
  await cell(page, 'rocket.jpg').locator('.picture').click();
  await page.locator('#detail[open]').waitFor();
  await accessible(page, 'phone-detail');
  const wide = await page.locator('#detail').evaluate((one) => one.scrollWidth > one.clientWidth);
  assert.equal(wide, false, 'the dialog scrolls sideways');
  await page.getByRole('button', { name: 'Close' }).first().click();
  await cell(page, 'rocket.jpg').locator('.words').tap();
  await page.locator('.editor').waitFor();
  await accessible(page, 'phone-edit');
  assert.equal(await scrollsSideways(page), false);
  clean(seen);
  await context.close();
});

test('the page asks for an API key, and sends it for pictures as well', async () => {
  const { page, context } = await visit(browser, url, { ready: 'h1' });
  const pictures = [];
  await page.route('**/library/**', async (route) => {
    const key = (await route.request().allHeaders()).authorization;
    if (route.request().url().endsWith('/thumbnail')) pictures.push(key);
    if (key === 'Bearer open sesame') return route.continue();
    const body = JSON.stringify({ title: 'No', status: 401, code: 'unauthorized', detail: 'send an API key' });
    return route.fulfill({ status: 401, contentType: 'application/problem+json', body });
  });
  await page.goto(GALLERY);
  await page.getByLabel('API key').waitFor();
  await accessible(page, 'key');
  await page.getByLabel('API key').fill('open sesame');
  await page.getByLabel('API key').press('Enter');
  await page.locator('.cell img[src^="blob:"]').first().waitFor();
  assert.ok(pictures.length >= 4 && pictures.every((key) => key === 'Bearer open sesame'), pictures);
  await context.close();
});

test('the front page leads to the gallery', async () => {
  const { page, context, seen } = await visit(browser, url);
  await page.getByRole('link', { name: 'Gallery' }).click();
  await page.locator('.cell').first().waitFor();
  assert.equal(page.url(), GALLERY);
  clean(seen);
  await context.close();
});

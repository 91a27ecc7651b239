// node page.test.mjs URL [FOLDER]: tests the page of the server at URL in headless Chromium and writes
// screenshots to FOLDER. The server uses the embedded model and no API keys.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { copyFile, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { card, clipboard, drop, findings, idle, launch, paste, scrollsSideways, visit } from './browser.mjs';

const [url, folder] = process.argv.slice(2);
if (!url) throw new Error('node page.test.mjs URL [FOLDER]');
const ROOT = resolve(dirname(fileURLToPath(import.meta.url)), '../..');
const PHOTOS = join(ROOT, 'assets');
const photo = (name) => join(PHOTOS, name);
const REFUSED = /Failed to load resource: the server responded with a status of (\d+)/;

let browser;
before(async () => {
  browser = await launch();
  if (folder) await mkdir(folder, { recursive: true });
});
after(() => browser?.close());

/** The photo with a random comment after the first marker, so that its bytes are new to the server. */
async function unseen(name) {
  const bytes = await readFile(photo(name));
  const comment = Buffer.concat([Buffer.from([0xff, 0xfe, 0, 18]), randomBytes(16)]);
  return [name, Buffer.concat([bytes.subarray(0, 2), comment, bytes.subarray(2)])];
}

const broken = async () => ['broken.jpg', (await readFile(photo('coffee.jpg'))).subarray(0, 20_000)];

async function shot(page, name, options = {}) {
  if (folder) await page.screenshot({ path: join(folder, `${name}.png`), ...options });
}

/** The server's own answer for a file. */
async function expected(name, params = {}) {
  const body = new FormData();
  body.append('image', new Blob([await readFile(photo(name))]), name);
  for (const [field, value] of Object.entries(params)) body.append(field, value);
  const response = await fetch(new URL('caption/generate', url), { method: 'POST', body });
  assert.equal(response.status, 200);
  return response.json();
}

/** Runs a command from the page in the folder of the photos. */
async function shell(command) {
  const { stdout } = await promisify(execFile)('bash', ['-c', `${command} --silent`], { cwd: PHOTOS });
  return JSON.parse(stdout);
}

/** Opens or closes the details of all cards. */
const details = (page, open) => page.locator('.more').evaluateAll((all, open) => {
  for (const one of all) one.open = open;
}, open);

/** Asserts that only the expected requests failed, and that no other host was contacted. */
function clean(seen, statuses = []) {
  assert.deepEqual(seen.strangers, []);
  const others = seen.complaints.filter((text) => !REFUSED.test(text));
  assert.deepEqual(others, []);
  assert.deepEqual(seen.complaints.map((text) => text.match(REFUSED)[1]), statuses.map(String));
}

test('three photos are dropped, one of them broken', async (t) => {
  const { page, context, seen } = await visit(browser, url);
  await t.test('the empty page has no serious finding', async () => {
    assert.deepEqual(await findings(page), []);
    await shot(page, 'empty-light');
  });

  await t.test('captions appear word by word, over one connection', async () => {
    await page.evaluate(() => {
      globalThis.states = new Set();
      new MutationObserver(() => {
        for (const caption of document.querySelectorAll('.cutline')) states.add(caption.textContent);
      }).observe(document.getElementById('photos'), { childList: true, subtree: true, characterData: true });
    });
    await drop(page, [await unseen('cat.jpg'), await broken(), await unseen('coffee.jpg')]);
    await idle(page, 3);
    const states = await page.evaluate(() => [...states]);
    for (const name of ['cat.jpg', 'coffee.jpg']) {
      const caption = await card(page, name).locator('.cutline').textContent();
      assert.equal(caption, (await expected(name)).caption);
      const words = caption.split(' ');
      const shorter = words.map((_, n) => words.slice(0, n).join(' ')).filter((text) => text);
      const shown = shorter.filter((text) => states.includes(text));
      assert.ok(shown.length > words.length / 2, `${shown.length} states before "${caption}"`);
    }
    assert.equal(seen.streams.length, 0);
    assert.equal(seen.sockets.length, 1);
    const ends = seen.sockets[0].map(({ type }) => type).filter((type) => ['done', 'error'].includes(type));
    assert.deepEqual(ends.sort(), ['done', 'done', 'error']);
  });

  await t.test('the broken photo shows the error', async () => {
    const failed = card(page, 'broken.jpg');
    const text = await failed.textContent();
    assert.match(text, /The image cannot be decoded/);
    assert.match(text, /undecodable_image · request [0-9a-f-]{36}/);
    await failed.getByRole('button', { name: 'Try again for broken.jpg' }).click();
    await idle(page, 3);
    assert.equal(await failed.getAttribute('data-state'), 'failed');
    assert.equal(seen.sockets[0].filter(({ type }) => type === 'error').length, 2);
  });

  await t.test('colours are swatches that copy their code', async () => {
    const { colors } = await expected('coffee.jpg');
    const swatches = card(page, 'coffee.jpg').locator('.swatch');
    const names = colors.map(({ hex, name, fraction }) => `${hex} ${name}, ${Math.round(fraction * 100)} %`);
    assert.deepEqual(await swatches.allTextContents(), names);
    const painted = await swatches.first().evaluate((swatch) => getComputedStyle(swatch).backgroundColor);
    assert.equal(painted, `rgb(${colors[0].rgb.join(', ')})`);
    await swatches.first().click();
    assert.equal(await clipboard(page), colors[0].hex);
    assert.equal(await page.locator('#live').textContent(), `Copied: ${colors[0].hex}`);
  });

  await t.test('the caption is copied as alt text', async () => {
    await page.getByRole('button', { name: 'Copy as alt text for cat.jpg' }).click();
    assert.equal(await clipboard(page), (await expected('cat.jpg')).caption);
  });

  await t.test('mood, times, JSON and the curl command are shown', async () => {
    const coffee = card(page, 'coffee.jpg');
    assert.match(await coffee.locator('.credit').textContent(), /coffee\.jpg600 × 400 JPEG, 71 KBenergetic(\d+ ms|\d+\.\d s)/);
    await coffee.locator('summary').click();
    const json = JSON.parse(await coffee.getByRole('group', { name: 'JSON for coffee.jpg' }).textContent());
    const { captions, colors, mood } = await expected('coffee.jpg');
    assert.deepEqual({ captions: json.captions, colors: json.colors, mood: json.mood }, { captions, colors, mood });
    assert.equal(json.cache, 'miss');
    assert.ok(json.timings.total_ms > 0);
    const curl = await coffee.getByRole('group', { name: 'curl command for coffee.jpg' }).textContent();
    assert.equal((await shell(curl)).caption, json.caption);
  });

  await t.test('regenerating gives another caption, which the curl command repeats', async () => {
    const cat = card(page, 'cat.jpg');
    const first = await cat.locator('.cutline').textContent();
    let caption = first;
    // One sample can be the most likely caption, but not five in a row.
    for (let n = 0; n < 5 && caption === first; n += 1) {
      await cat.getByRole('button', { name: 'Regenerate' }).click();
      await idle(page, 3);
      caption = await cat.locator('.cutline').textContent();
    }
    assert.notEqual(caption, first);
    const focused = await page.evaluate(() => document.activeElement.textContent);
    assert.equal(focused, 'Regenerate for cat.jpg', 'the focus stays where it was');
    await cat.locator('summary').click();
    const curl = await cat.getByRole('group', { name: 'curl command for cat.jpg' }).textContent();
    assert.match(curl, /seed=\d+/);
    assert.equal((await shell(curl)).caption, caption);
  });

  await t.test('all results are downloaded as CSV and JSON', async () => {
    const download = async (kind) => {
      const coming = page.waitForEvent('download');
      await page.getByRole('button', { name: `Save ${kind}` }).click();
      const file = await coming;
      assert.equal(file.suggestedFilename(), `captions.${kind.toLowerCase()}`);
      return readFile(await file.path(), 'utf8');
    };
    const [csv, json] = [await download('CSV'), await download('JSON')];
    const { results, summary } = JSON.parse(json);
    // Two captions, two failures of the same photo, and at least one sample.
    assert.ok(results.length >= 5);
    assert.equal(summary.failed, 2);
    assert.equal(results.filter(({ error }) => error?.code === 'undecodable_image').length, 2);
    const rows = csv.trimEnd().split('\r\n');
    assert.equal(rows.length, results.length + 1);
    assert.ok(rows[0].startsWith('\ufeffname,status,caption,'));
    const { caption } = results.find(({ name }) => name === 'coffee.jpg');
    assert.ok(rows.some((row) => row.startsWith(`coffee.jpg,ok,${caption},`)), csv);
  });

  await t.test('the page has no serious finding in light mode, in dark mode or on a phone', async () => {
    // The copy buttons confirm for a moment.
    await page.waitForFunction(() => !/copied/i.test(document.getElementById('photos').textContent));
    for (const colorScheme of ['light', 'dark']) {
      await page.emulateMedia({ colorScheme });
      for (const [device, width] of [['desk', 1280], ['phone', 360]]) {
        await page.setViewportSize({ width, height: 800 });
        assert.deepEqual(await findings(page), [], `${colorScheme}, ${width} px`);
        assert.equal(await scrollsSideways(page), false, `sideways at ${width} px`);
        await shot(page, `details-${device}-${colorScheme}`, { fullPage: true });
        await details(page, false);
        await page.mouse.move(0, 0);
        await shot(page, `three-${device}-${colorScheme}`, { fullPage: true });
        await details(page, true);
      }
    }
    // The width of a 1280 pixel window at 400 % zoom.
    await page.setViewportSize({ width: 320, height: 800 });
    assert.equal(await scrollsSideways(page), false, 'sideways at 320 px');
    await page.setViewportSize({ width: 1280, height: 900 });
  });

  await t.test('the visit survives a reload until it is deleted', async () => {
    const before = await page.locator('#sheet li').count();
    assert.ok(before >= 3);
    await page.reload();
    assert.equal(await page.locator('.print').count(), 0);
    assert.equal(await page.locator('#sheet li').count(), before);
    const thumb = page.locator('#sheet img').first();
    assert.ok(await thumb.evaluate(async (img) => (await img.decode(), img.naturalWidth > 0 && img.src.length < 12_000)));
    await shot(page, 'visit-dark', { fullPage: true });
    await page.getByRole('button', { name: 'Delete now' }).click();
    assert.equal(await page.locator('#visit').isVisible(), false);
    await page.reload();
    assert.equal(await page.locator('#sheet li').count(), 0);
  });

  clean(seen);
  await context.close();
});

test('the page can be used with the keyboard alone', async () => {
  const { page, context, seen } = await visit(browser, url, { reducedMotion: 'reduce' });
  const focus = () => page.evaluate(() => {
    const active = document.activeElement;
    const marked = active.type === 'file' ? active.labels[0] : active;
    const { outlineStyle, outlineWidth } = getComputedStyle(marked);
    const name = active.getAttribute('aria-label') ?? active.labels?.[0]?.textContent ?? active.textContent;
    return { name: name.trim().replace(/\s+/g, ' '), seen: outlineStyle === 'solid' && outlineWidth === '3px' };
  });
  const tab = async (key = 'Tab') => {
    await page.keyboard.press(key);
    const { name, seen } = await focus();
    assert.ok(seen, `the focus on "${name}" is not visible`);
    return name;
  };
  // Early, because intercepting the file chooser takes the browser a moment.
  const choosing = page.waitForEvent('filechooser');
  assert.equal(await tab(), 'Skip to the photos');
  assert.match(await tab(), /^Choose photos/);
  assert.match(await tab(), /^Start with/);
  await page.keyboard.type('a photo of');
  assert.match(await tab(), /^Beams/);
  await page.keyboard.press('ArrowRight');
  await page.keyboard.press('ArrowRight');
  assert.equal(await page.locator('#beams-value').textContent(), '3');
  await tab('Shift+Tab');
  await tab('Shift+Tab');
  await page.keyboard.press('Enter');
  await (await choosing).setFiles([photo('rocket.jpg')]);
  await idle(page, 1);

  const caption = await page.locator('.cutline').textContent();
  assert.ok(caption.startsWith('a photo of '), caption);
  assert.equal(caption, (await expected('rocket.jpg', { prompt: 'a photo of', num_beams: '3' })).caption);
  assert.equal(await page.locator('#live').textContent(), `rocket.jpg: ${caption}`);
  const animation = await page.locator('.word').first().evaluate((word) => getComputedStyle(word).animationName);
  assert.equal(animation, 'none');

  // Tab from the file input past the colours to the buttons and the details.
  await page.locator('#files').focus();
  const stops = [];
  while (stops.at(-1) !== 'Details for rocket.jpg' && stops.length < 40) stops.push(await tab());
  for (const wanted of [/^Start with/, /^Beams/, /^Caption all again$/, /^Save CSV$/, /^#[0-9a-f]{6} /,
    /^Copy as alt text for rocket.jpg$/, /^Regenerate for rocket.jpg$/, /^Details for rocket.jpg$/]) {
    assert.ok(stops.some((stop) => wanted.test(stop)), `${wanted} is not among ${stops.join(' | ')}`);
  }
  await page.keyboard.press('Enter');
  assert.equal(await tab(), 'Copy curl command for rocket.jpg');
  await page.keyboard.press('Enter');
  const curl = await clipboard(page);
  assert.match(curl, /--form-string 'prompt=a photo of'/);
  assert.equal((await shell(curl)).caption, caption);
  assert.deepEqual(await findings(page), []);

  // Caption again with other settings.
  await page.locator('#prompt').fill('');
  await page.locator('#beams').fill('1');
  await page.locator('#prompt').press('Enter');
  await idle(page, 1);
  assert.equal(await page.locator('.cutline').textContent(), (await expected('rocket.jpg')).caption);
  await shot(page, 'one-light', { fullPage: true });
  clean(seen);
  await context.close();
});

test('a photo that the browser cannot display is captioned', async () => {
  const { page, context, seen } = await visit(browser, url);
  await paste(page, [join(ROOT, 'tests/goldens/image/zoo/tiff.tiff')]);
  await idle(page, 1);
  assert.equal(await page.locator('.print').getAttribute('data-state'), 'done');
  assert.ok((await page.locator('.cutline').textContent()).length > 0);
  assert.equal(await page.locator('.no-picture').count(), 1);
  const stripes = await page.locator('.no-picture').evaluate((box) => getComputedStyle(box).backgroundImage);
  assert.match(stripes, /linear-gradient/);
  assert.deepEqual(await findings(page), []);
  await shot(page, 'tiff-light', { fullPage: true });
  clean(seen);
  await context.close();
});

test('all images of a dropped folder are captioned', async () => {
  const top = await mkdtemp(join(tmpdir(), 'cutline-page-'));
  try {
    await mkdir(join(top, 'photos', 'more'), { recursive: true });
    await copyFile(photo('cat.jpg'), join(top, 'photos', 'b.jpg'));
    await copyFile(photo('coffee.jpg'), join(top, 'photos', 'more', 'c.jpg'));
    await writeFile(join(top, 'photos', 'a.txt'), 'no photo');
    const { page, context, seen } = await visit(browser, url);
    const { x, y, width, height } = await page.locator('#drop').boundingBox();
    const devtools = await context.newCDPSession(page);
    // A real drag from outside: only such a drag can contain folders.
    const data = { items: [], files: [join(top, 'photos'), photo('rocket.jpg')], dragOperationsMask: 1 };
    for (const type of ['dragEnter', 'dragOver', 'drop']) {
      await devtools.send('Input.dispatchDragEvent', { type, x: x + width / 2, y: y + height / 2, data });
      if (type === 'dragOver') await page.locator('#drop[data-over]').waitFor();
    }
    await idle(page, 3);
    assert.equal(await page.locator('#drop[data-over]').count(), 0);
    assert.deepEqual(await page.locator('.print h2').allTextContents(), ['b.jpg', 'c.jpg', 'rocket.jpg']);
    assert.equal(await page.locator('.print[data-state="done"]').count(), 3);
    clean(seen);
    await context.close();
  } finally {
    await rm(top, { recursive: true });
  }
});

test('many photos are sent over one connection, several at a time', async () => {
  const { page, context, seen } = await visit(browser, url);
  await page.evaluate(() => {
    let now = 0;
    globalThis.most = 0;
    const { send } = WebSocket.prototype;
    WebSocket.prototype.send = function (data) {
      const ended = ({ data }) => (now -= JSON.parse(data).type === 'done');
      if (!this.counted) this.addEventListener('message', ended, { capture: true });
      this.counted = true;
      now += 1;
      most = Math.max(most, now);
      send.call(this, data);
    };
  });
  await drop(page, await Promise.all(Array.from({ length: 20 }, async (_, n) => [`${n}.jpg`, (await unseen('cat.jpg'))[1]])));
  await idle(page, 20);
  assert.equal(await page.locator('.print[data-state="done"]').count(), 20);
  assert.equal(seen.streams.length, 0);
  assert.equal(seen.sockets.length, 1);
  assert.equal(seen.sockets[0].filter(({ type }) => type === 'done').length, 20);
  const most = await page.evaluate(() => globalThis.most);
  assert.ok(most > 4 && most <= 8, `${most} at a time`);
  // A single photo does not need a connection, but uses the one that is there.
  await drop(page, [await unseen('coffee.jpg')]);
  await idle(page, 21);
  assert.equal(seen.streams.length, 0);
  clean(seen);
  await context.close();
});

test('over a connection, photos can be stopped, and a full queue makes them wait', async () => {
  const sent = [];
  let refuse = true;
  const sockets = (socket) => socket.onMessage((message) => {
    const request = JSON.parse(message.toString().split('\n')[0]);
    sent.push(request);
    if (!refuse) return;
    refuse = false;
    const error = { title: 'The queue is full', status: 429, code: 'queue_full', detail: 'it is full' };
    socket.send(JSON.stringify({ type: 'error', id: request.id, retry_after: 1, error }));
  });
  const { page, context, seen } = await visit(browser, url, { sockets });
  await drop(page, Array.from({ length: 12 }, (_, n) => [`${n}.jpg`, Buffer.from('x')]));
  await page.getByText('The server is busy').waitFor();
  const asked = () => sent.filter(({ type }) => type === 'caption');
  const until = Date.now() + 20_000;
  while (asked().length < 9 && Date.now() < until) await page.waitForTimeout(50);
  assert.equal(asked().length, 9, 'one is asked for again, and eight wait for an answer');
  await page.getByRole('button', { name: 'Stop' }).click();
  await idle(page, 12);
  assert.equal(await page.locator('.print[data-state="stopped"]').count(), 12);
  const waiting = asked().map(({ id }) => id).slice(1).sort();
  assert.deepEqual(sent.filter(({ type }) => type === 'cancel').map(({ id }) => id).sort(), waiting);
  assert.equal(seen.streams.length, 0);
  clean(seen);
  await context.close();
});

test('a connection that breaks is replaced by single requests', async () => {
  for (const sockets of [
    (socket) => socket.onMessage(() => socket.close()),
    (socket) => socket.close(),
  ]) {
    const { page, context, seen } = await visit(browser, url, { sockets });
    await drop(page, [await unseen('cat.jpg'), await unseen('coffee.jpg'), await unseen('rocket.jpg')]);
    await idle(page, 3);
    assert.equal(await page.locator('.print[data-state="done"]').count(), 3);
    assert.equal(seen.streams.length, 3);
    clean(seen);
    await context.close();
  }
});

test('without a connection, many photos are sent a few at a time, and wait as long as Retry-After says', async () => {
  const { page, context, seen } = await visit(browser, url, { sockets: (socket) => socket.close() });
  let [now, most, asked] = [0, 0, 0];
  const times = [];
  await page.route('**/caption/generate', async (route) => {
    asked += 1;
    times.push(Date.now());
    if (asked === 3) {
      const detail = 'the queue is full; try again later';
      const body = JSON.stringify({ title: 'The queue is full', status: 429, code: 'queue_full', detail });
      await route.fulfill({ status: 429, headers: { 'retry-after': '1', 'content-type': 'application/problem+json' }, body });
      return;
    }
    now += 1;
    most = Math.max(most, now);
    const response = await route.fetch();
    now -= 1;
    await route.fulfill({ response });
  });
  const bytes = await readFile(photo('astronaut.jpg'));
  await drop(page, Array.from({ length: 12 }, (_, n) => [`frame ${n}.jpg`, bytes]));
  await page.getByText('The server is busy').waitFor();
  assert.match(await page.locator('#count').textContent(), /^\d+ of 12 photos done/);
  assert.equal(await page.locator('#progress').isVisible(), true);
  await shot(page, 'busy-light');
  await idle(page, 12);
  assert.equal(await page.locator('.print[data-state="done"]').count(), 12);
  assert.equal(asked, 13);
  // A square photo in a wider frame is visible as a whole.
  const whole = await page.locator('.frame img').evaluateAll(
    (pictures) => pictures.every((one) => one.offsetHeight <= one.parentElement.clientHeight),
  );
  assert.ok(whole, 'a photo is cropped');
  assert.ok(most >= 2 && most <= 4, `${most} at a time`);
  // Except for requests already sent, nothing was sent in the second that the server asked for.
  const gap = Math.max(...times.slice(1).map((time, n) => time - times[n]));
  assert.ok(gap >= 900, `${gap} ms`);
  assert.match(await page.locator('#count').textContent(), /^12 captions in this visit$/);
  await page.getByRole('button', { name: 'Clear photos' }).click();
  assert.equal(await page.locator('.print').count(), 0);
  clean(seen, [429]);
  await context.close();
});

test('unfinished photos can be stopped', async () => {
  const { page, context, seen } = await visit(browser, url, { sockets: (socket) => socket.close() });
  await page.route('**/caption/generate', () => {});
  await drop(page, ['a', 'b', 'c', 'd', 'e', 'f'].map((name) => [`${name}.jpg`, Buffer.from('x')]));
  const asked = page.locator('.print').filter({ hasText: 'Captioning' });
  await page.waitForFunction(() => document.querySelectorAll('.print').length === 6);
  assert.equal(await asked.count(), 4);
  await page.getByRole('button', { name: 'Stop' }).click();
  await idle(page, 6);
  assert.equal(await page.locator('.print[data-state="stopped"]').count(), 6);
  clean(seen);
  await context.close();
});

test('the page asks for an API key and sends it', async () => {
  const { page, context, seen } = await visit(browser, url);
  const given = [];
  await page.route('**/caption/generate', async (route) => {
    const key = (await route.request().allHeaders()).authorization;
    given.push(key);
    if (key === 'Bearer open sesame') return route.continue();
    const body = JSON.stringify({ title: 'No', status: 401, code: 'unauthorized', detail: 'send an API key' });
    return route.fulfill({ status: 401, contentType: 'application/problem+json', body });
  });
  assert.equal(await page.getByLabel('API key').isVisible(), false);
  await drop(page, [photo('cat.jpg')]);
  for (const key of ['wrong', 'open sesame']) {
    await page.getByLabel('API key').waitFor();
    assert.equal(await page.locator('.print').getAttribute('data-state'), 'busy');
    if (key === 'wrong') {
      assert.deepEqual(await findings(page), []);
      await shot(page, 'key-light');
    }
    await page.getByLabel('API key').fill(key);
    await page.getByLabel('API key').press('Enter');
    if (key === 'wrong') await page.getByText('rejected this key').waitFor();
  }
  await idle(page, 1);
  assert.equal(await page.locator('.print').getAttribute('data-state'), 'done');
  assert.deepEqual(given, [undefined, 'Bearer wrong', 'Bearer open sesame']);
  const curl = await page.locator('pre').first().textContent();
  assert.ok(curl.includes('"Authorization: Bearer $API_KEY"') && !curl.includes('sesame'), curl);
  // It is stored until the tab is closed.
  assert.equal(await page.evaluate(() => sessionStorage.getItem('cutline.key')), 'open sesame');
  assert.equal(await page.evaluate(() => localStorage.length), 0);
  clean(seen, [401, 401]);
  await context.close();
});

test('an unreachable server and a broken answer are reported', async () => {
  const { page, context } = await visit(browser, url);
  await page.route('**/caption/generate', (route) => route.abort());
  await drop(page, [photo('cat.jpg')]);
  await idle(page, 1);
  assert.match(await page.locator('.print').textContent(), /The server cannot be reached/);
  const late = JSON.stringify({ status: 504, code: 'inference_timeout', title: 'It took too long', detail: 'x' });
  for (const [body, title] of [
    ['event: token\ndata: {"text":"a cat"}\n\n', /The answer was cut off/],
    [`event: error\ndata: ${late}\n\n`, /It took too long.*inference_timeout/],
    ['event: done\ndata: {"caption":"a cat"}\n\n', /The page failed/],
  ]) {
    await page.unroute('**/caption/generate');
    await page.route('**/caption/generate', (route) => route.fulfill({ contentType: 'text/event-stream', body }));
    await page.getByRole('button', { name: 'Try again for cat.jpg' }).click();
    await idle(page, 1);
    assert.match(await page.locator('.print').textContent(), title);
  }
  await page.unroute('**/caption/generate');
  await page.getByRole('button', { name: 'Try again for cat.jpg' }).click();
  await idle(page, 1);
  assert.equal(await page.locator('.print').getAttribute('data-state'), 'done');
  await context.close();
});

// node scroll.test.mjs URL: measures the gallery of the server at URL, whose library has 10,000 photos or more,
// in headless Chromium.

import assert from 'node:assert/strict';
import { cpus, loadavg } from 'node:os';
import { after, before, test } from 'node:test';
import { launch, visit } from './browser.mjs';

const [url] = process.argv.slice(2);
if (!url) throw new Error('node scroll.test.mjs URL');
const GALLERY = new URL('gallery', url).href;
const PHOTOS = 10_000;
/** Pixels a frame: 6,600 a second, as a thumb does it. */
const STEP = 110;
const FRAMES = 900;
/** Milliseconds of work for a frame, of the 16.7 that there are. Other work on the machine empties its caches. */
const WORK = 8;
/** Milliseconds from frame to frame, on a machine without other work: two of a screen with 60 a second. */
const SMOOTH = 34;

/** Whether other programs keep the processors busy, so that times say nothing about the gallery. */
const busy = loadavg()[0] > cpus().length;

let browser;
before(async () => {
  browser = await launch();
});
after(() => browser?.close());

const percentile = (numbers, share) => numbers.toSorted((a, b) => a - b)[Math.min(numbers.length - 1, Math.floor(share * numbers.length))];

/** Scrolls, and records frames and long tasks. */
const scroll = (page) => page.evaluate(async ([step, most]) => {
  const tasks = [];
  const observer = new PerformanceObserver((list) => tasks.push(...list.getEntries().map(({ duration }) => duration)));
  observer.observe({ type: 'longtask' });
  const frames = [];
  let [last, elements] = [performance.now(), 0];
  while (frames.length < most) {
    const now = await new Promise((done) => requestAnimationFrame(done));
    frames.push(now - last);
    last = now;
    scrollBy({ top: step, behavior: 'instant' });
    if (frames.length % 20 === 0) elements = Math.max(elements, document.querySelectorAll('.cell').length);
  }
  observer.disconnect();
  return { tasks, frames: frames.slice(1), elements };
}, [STEP, FRAMES]);

/** Milliseconds that the processor has worked for the page. Other work on the machine does not count. */
async function work(session) {
  const { metrics } = await session.send('Performance.getMetrics');
  return 1000 * metrics.find(({ name }) => name === 'TaskDuration').value;
}

test('ten thousand photos scroll without stutter', async () => {
  const { page, context } = await visit(browser, GALLERY, { ready: '.cell img[src]' });
  const total = Number((await page.locator('#count').textContent()).replaceAll(/\D/g, ''));
  assert.ok(total >= PHOTOS, `${total} photos`);
  const session = await context.newCDPSession(page);
  await session.send('Performance.enable', { timeDomain: 'threadTicks' });
  const before = await work(session);
  const { tasks, frames, elements } = await scroll(page);
  const each = (await work(session) - before) / frames.length;
  const p95 = percentile(frames, 0.95);
  const long = tasks.filter((duration) => duration > 100).length;
  console.log(`scrolling ${FRAMES} frames: ${each.toFixed(1)} ms of work each, p95 ${p95.toFixed(1)} ms, `
    + `${tasks.length} long tasks, ${long} over 100 ms, ${elements} cells${busy ? ', on a busy machine' : ''}`);
  assert.ok(elements < 150, `${elements} elements`);
  assert.ok(each < (busy ? 2 : 1) * WORK, `a frame is ${each} ms of work`);
  if (!busy) {
    assert.ok(p95 < SMOOTH, `a frame takes ${p95} ms`);
    assert.equal(long, 0, 'a task takes more than 100 ms');
  }
  // Many photos further down, the elements are no more.
  assert.ok(await page.evaluate(() => scrollY) > FRAMES * STEP * 0.9, 'the photos came too late');
  await context.close();
});

test('a page of the gallery is answered at once', async () => {
  const times = [];
  let cursor = '';
  for (let n = 0; n < 60; n += 1) {
    const begin = performance.now();
    const answer = await fetch(new URL(`library/assets?limit=120&count=true${cursor}`, url));
    const { next } = await answer.json();
    times.push(performance.now() - begin);
    cursor = next ? `&cursor=${encodeURIComponent(next)}` : '';
  }
  console.log(`a page of 120: median ${percentile(times, 0.5).toFixed(1)} ms, p95 ${percentile(times, 0.95).toFixed(1)} ms`);
  assert.ok(percentile(times, 0.95) < (busy ? 1000 : 200), `${percentile(times, 0.95)} ms`);
});

test('the last of ten thousand photos is reached with one key', async () => {
  const { page, context } = await visit(browser, GALLERY, { ready: '.cell img[src]' });
  await page.locator('.cell .picture').first().focus();
  const total = await page.locator('.cell').first().getAttribute('aria-setsize');
  for (let n = 0; n < 200; n += 1) {
    await page.keyboard.press('End');
    const at = await page.evaluate(() => document.activeElement.closest('.cell').getAttribute('aria-posinset'));
    if (at === total) break;
    await page.waitForTimeout(50);
  }
  const at = await page.evaluate(() => document.activeElement.closest('.cell').getAttribute('aria-posinset'));
  assert.equal(at, total);
  await context.close();
});

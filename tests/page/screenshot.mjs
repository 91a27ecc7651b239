// node screenshot.mjs URL FILE: writes the screenshot for docs/web-page.md, as JPEG. With FILE named gallery.jpg,
// that for docs/library.md, of a server whose library has the photos in assets/.

import { basename, dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { drop, idle, launch, visit } from './browser.mjs';

const [url, path] = process.argv.slice(2);
if (!path) throw new Error('node screenshot.mjs URL FILE');
const photos = join(resolve(dirname(fileURLToPath(import.meta.url)), '../..'), 'assets');

const browser = await launch();
const options = { viewport: { width: 1280, height: 970 } };

async function captions() {
  const { page } = await visit(browser, url, options);
  await drop(page, ['cat.jpg', 'coffee.jpg', 'rocket.jpg'].map((name) => join(photos, name)));
  await idle(page, 3);
  return page;
}

/** Somebody has corrected a caption, and the model has another idea of it. */
async function gallery() {
  const send = async (path, body, { method = 'POST', version } = {}) => {
    const headers = { 'content-type': 'application/json', ...(version && { 'if-match': `"${version}"` }) };
    await fetch(new URL(`library/assets/${path}`, url), { method, headers, body: JSON.stringify(body) });
  };
  const answer = await fetch(new URL('library/assets?q=name:coffee', url));
  const { items: [{ hash, version }] } = await answer.json();
  await send(`${hash}/texts/caption`, { action: 'write', text: 'an espresso in a red cup' }, { method: 'PATCH', version });
  await send(`${hash}/regenerate`, { prompt: 'a photo of' });
  const view = { viewport: { width: 1280, height: 640 }, ready: '[data-suggested] img[src]' };
  const { page } = await visit(browser, new URL('gallery?sort=added', url).href, view);
  await page.locator('.filter').first().waitFor();
  return page;
}

const page = await (basename(path) === 'gallery.jpg' ? gallery() : captions());
await page.mouse.move(0, 0);
await page.evaluate(() => Promise.all([
  ...document.getAnimations().map((animation) => animation.finished),
  ...[...document.images].map((picture) => picture.decode()),
]));
await page.screenshot({ path, type: 'jpeg', quality: 82 });
await browser.close();

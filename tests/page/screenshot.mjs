// node screenshot.mjs URL FILE: writes the screenshot for docs/web-page.md, as JPEG.

import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { drop, idle, launch, visit } from './browser.mjs';

const [url, path] = process.argv.slice(2);
if (!path) throw new Error('node screenshot.mjs URL FILE');
const photos = join(resolve(dirname(fileURLToPath(import.meta.url)), '../..'), 'assets');

const browser = await launch();
const { page } = await visit(browser, url, { viewport: { width: 1280, height: 970 } });
await drop(page, ['cat.jpg', 'coffee.jpg', 'rocket.jpg'].map((name) => join(photos, name)));
await idle(page, 3);
await page.mouse.move(0, 0);
await page.evaluate(() => Promise.all(document.getAnimations().map((animation) => animation.finished)));
await page.screenshot({ path, type: 'jpeg', quality: 82 });
await browser.close();

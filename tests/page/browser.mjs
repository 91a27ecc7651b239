// Opens the page in headless Chromium and records its requests, warnings and errors.

import { readFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { createRequire } from 'node:module';

// Unlike `import`, this honours NODE_PATH, which may be outside the checkout.
const require = createRequire(import.meta.url);
const { chromium } = require('playwright-core');

const AXE = await readFile(require.resolve('axe-core/axe.min.js'), 'utf8');
const PATH = process.env.CHROMIUM ?? '/usr/bin/chromium';
const FLAGS = [
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];

/** Each launch has its own profile in a temporary folder. */
export function launch() {
  const root = process.getuid?.() === 0;
  const args = root ? [...FLAGS, '--no-sandbox'] : FLAGS;
  return chromium.launch({ executablePath: PATH, headless: true, chromiumSandbox: !root, args });
}

/**
 * Opens the page at `url` in a new context, and waits for the element `ready`. `sockets` handles its WebSockets
 * instead of the server.
 */
export async function visit(browser, url, { sockets, ready = '#server strong', ...options } = {}) {
  const context = await browser.newContext({
    viewport: { width: 1280, height: 900 },
    permissions: ['clipboard-read', 'clipboard-write'],
    ...options,
  });
  const page = await context.newPage();
  const seen = { complaints: [], strangers: [], streams: [], sockets: [] };
  if (sockets) await page.routeWebSocket('**/api/realtime', sockets);
  const host = new URL(url).host;
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type())) seen.complaints.push(message.text());
  });
  page.on('pageerror', (error) => seen.complaints.push(String(error)));
  context.on('request', (request) => {
    const address = new URL(request.url());
    if (!['blob:', 'data:'].includes(address.protocol) && address.host !== host) {
      seen.strangers.push(request.url());
    }
  });
  page.on('response', (response) => {
    if (response.url().endsWith('/caption/generate')) seen.streams.push(response);
  });
  page.on('websocket', (socket) => {
    if (new URL(socket.url()).host !== host) seen.strangers.push(socket.url());
    const frames = [];
    seen.sockets.push(frames);
    socket.on('framereceived', ({ payload }) => frames.push(JSON.parse(payload)));
  });
  await page.goto(url);
  await page.locator(ready).first().waitFor();
  return { page, context, seen };
}

/** Findings of axe with these impacts, one per line. */
export async function findings(page, impacts = ['serious', 'critical']) {
  // Wait until all elements have faded in.
  await page.evaluate(() => Promise.all(document.getAnimations().map((animation) => animation.finished)));
  // Evaluate axe directly: the page's content security policy forbids script elements.
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => globalThis.axe.run({
    runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice'],
  }));
  return violations
    .filter(({ impact }) => impacts.includes(impact))
    .flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.html} ${node.failureSummary}`));
}

/** Drops files on the page as a mouse does. Each file is a path, or a name with bytes. */
export async function drop(page, files) {
  await send(page, files, (transfer) => {
    const zone = document.getElementById('drop');
    for (const type of ['dragenter', 'dragover', 'drop']) {
      zone.dispatchEvent(new DragEvent(type, { dataTransfer: transfer, bubbles: true, cancelable: true }));
    }
  });
}

/** Pastes files. */
export async function paste(page, files) {
  await send(page, files, (transfer) => {
    document.body.dispatchEvent(new ClipboardEvent('paste', { clipboardData: transfer, bubbles: true, cancelable: true }));
  });
}

async function send(page, files, how) {
  const contents = await Promise.all(files.map(async (file) => {
    const [name, bytes] = typeof file === 'string' ? [basename(file), await readFile(file)] : file;
    return [name, bytes.toString('base64')];
  }));
  const transfer = await page.evaluateHandle((contents) => {
    const transfer = new DataTransfer();
    for (const [name, base64] of contents) {
      const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
      transfer.items.add(new File([bytes], name, { type: name.endsWith('.jpg') ? 'image/jpeg' : '' }));
    }
    return transfer;
  }, contents);
  await transfer.evaluate(how);
}

/** Waits until no card is busy. */
export async function idle(page, cards) {
  await page.waitForFunction(
    (cards) => document.querySelectorAll('.print').length === cards
      && !document.querySelector('.print[data-state="busy"]')
      && document.getElementById('stop').hidden,
    cards,
    { timeout: 60_000 },
  );
}

/** The card of a file. */
export const card = (page, name) =>
  page.locator('.print').filter({ has: page.getByRole('heading', { name, exact: true, includeHidden: true }) });

export const clipboard = (page) => page.evaluate(() => navigator.clipboard.readText());

/** Whether the page scrolls sideways. */
export const scrollsSideways = (page) =>
  page.evaluate(() => document.documentElement.scrollWidth > document.documentElement.clientWidth);

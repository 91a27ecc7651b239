// node --test modules.test.mjs: the modules of the page that need no browser.

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { execFileSync } from 'node:child_process';
import { test } from 'node:test';

/** Imports a file of the page. Its file name ends in .js, so Node would load it as a CommonJS module. */
async function load(name) {
  const source = await readFile(new URL(`../../src/http/page/assets/${name}`, import.meta.url));
  return import(`data:text/javascript;base64,${source.toString('base64')}`);
}

const { events, retryAfter, Problem } = await load('api.js');
const { Pool } = await load('pool.js');
const { Selection } = await load('selection.js');
const { toCsv, toCurl, toJson } = await load('results.js');
const { content, text: textOf, title, variables } = await load('versions.js');

async function read(chunks) {
  const stream = new ReadableStream({
    start(controller) {
      for (const chunk of chunks) controller.enqueue(chunk);
      controller.close();
    },
  });
  const found = [];
  for await (const event of events(stream)) found.push(event);
  return found;
}

test('events are read wherever the bytes are split', async () => {
  const text = 'event: token\ndata: {"text":"café"}\n\n: still here\n\nevent:done\r\ndata: a\r\ndata: b\r\n\r\n'
    + 'data: no name\n\nevent: cut\ndata: off\n';
  const expected = [
    { event: 'token', data: '{"text":"café"}' },
    { event: 'done', data: 'a\nb' },
    { event: 'message', data: 'no name' },
  ];
  const bytes = new TextEncoder().encode(text);
  for (const size of [1, 2, 3, 7, 1000]) {
    const chunks = [];
    for (let at = 0; at < bytes.length; at += size) chunks.push(bytes.slice(at, at + size));
    assert.deepEqual(await read(chunks), expected, `${size} bytes at a time`);
  }
});

test('Retry-After is seconds or a date', () => {
  const now = Date.parse('2026-01-01T00:00:00Z');
  assert.equal(retryAfter('3', now), 3);
  assert.equal(retryAfter('Thu, 01 Jan 2026 00:00:07 GMT', now), 7);
  assert.equal(retryAfter('Thu, 01 Jan 2025 00:00:00 GMT', now), 0);
  for (const none of [null, '', 'soon']) assert.equal(retryAfter(none, now), undefined);
});

test('the CSV escapes commas, quotes, line breaks and formulas', () => {
  const ok = {
    name: '=1+1, "x".jpg', status: 'ok', caption: 'a cat,\nand a dog', captions: [{ confidence: 0.5 }],
    parameters: { prompt: '-a', num_beams: 3 }, colors: [{ hex: '#112233' }, { hex: '#445566' }],
    mood: { label: 'calm', valence: -0.5 }, image: { width: 4 }, timings: { total_ms: 1.5 },
  };
  const failed = { name: 'b', status: 'error', error: { code: 'x', detail: 'y' } };
  const csv = toCsv([ok, failed]);
  assert.ok(csv.startsWith('\ufeffname,status,caption,confidence,prompt,num_beams,'));
  const [, one, two] = csv.split('\r\n');
  assert.ok(one.startsWith(`"'=1+1, ""x"".jpg",ok,"a cat,\nand a dog",0.5,'-a,3,`), one);
  assert.ok(one.includes(',#112233 #445566,calm,-0.5,'), one);
  assert.ok(two.startsWith('b,error,,') && two.endsWith(',x,y'), two);
  const named = (name) => toCsv([{ ...ok, name }]).split('\r\n').slice(1).join('\r\n');
  for (const name of ['+1', "'=1", '＝1']) assert.ok(named(name).startsWith(`'${name},`), name);
  for (const name of ["'a", 'a=1']) assert.ok(named(name).startsWith(`${name},`), name);
  const columns = (row) => row.replace(/"([^"]|"")*"/g, '').split(',').length;
  assert.deepEqual([one, two].map(columns), [23, 23]);
  const json = JSON.parse(toJson([ok, failed]));
  assert.deepEqual(json.summary, { total: 2, ok: 1, failed: 1 });
  assert.deepEqual(json.results[1], { index: 1, ...failed });
});

test('a shell parses the command as intended', () => {
  const seen = (command) => {
    const words = command.replace(/^curl/, 'printf "%s\\n"');
    return execFileSync('bash', ['-c', `API_KEY=secret; ${words}`], { encoding: 'utf8' }).trimEnd().split('\n');
  };
  const url = 'http://127.0.0.1:8000/caption/generate';
  assert.deepEqual(seen(toCurl(url, 'a.jpg', {}, false)), ['-F', 'image=@a.jpg', url]);
  const name = `it's; "my" $HOME,\\photo.jpg`;
  const params = { prompt: `@it's $(a) "photo"`, num_beams: 3 };
  assert.deepEqual(seen(toCurl(url, name, params, true)), [
    '-H', 'Authorization: Bearer secret',
    '-F', `image=@"it's; \\"my\\" $HOME,\\\\photo.jpg"`,
    '--form-string', `prompt=@it's $(a) "photo"`,
    '-F', 'num_beams=3', url,
  ]);
});

/** A task that logs its callbacks. */
function task(log, name, run) {
  const note = (what) => (detail) => log.push([name, what, detail]);
  return {
    run: async (signal) => {
      log.push([name, 'run']);
      await run(signal);
      log.push([name, 'done']);
    },
    waiting: note('waiting'), locked: note('locked'), failed: note('failed'), stopped: note('stopped'),
  };
}

/** A pool, and a promise that resolves when it is empty. */
function pool(limit) {
  let tell;
  const empty = new Promise((resolve) => (tell = resolve));
  const made = new Pool(() => limit, () => made.open === 0 && tell());
  return [made, empty];
}

test('a limited number of tasks runs at a time, in order', async () => {
  const [made, empty] = pool(3);
  const log = [];
  let [now, most] = [0, 0];
  for (let n = 0; n < 10; n += 1) {
    made.add(task(log, n, async () => {
      most = Math.max(most, (now += 1));
      await null;
      now -= 1;
    }));
  }
  await empty;
  assert.equal(most, 3);
  assert.deepEqual(log.filter(([, what]) => what === 'run').map(([n]) => n), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
});

test('a deferred task is retried, and the others wait as well', async () => {
  const [made, empty] = pool(1);
  const log = [];
  let tries = 0;
  const begin = Date.now();
  made.add(task(log, 'a', async () => {
    if ((tries += 1) < 3) throw new Problem({ status: 429 }, 0.05);
  }));
  made.add(task(log, 'b', async () => {}));
  await empty;
  assert.deepEqual(log.map(([name, what]) => `${name} ${what}`), [
    'a run', 'a waiting', 'a run', 'a waiting', 'a run', 'a done', 'b run', 'b done',
  ]);
  assert.ok(Date.now() - begin >= 99);
});

test('a permanent failure is not retried', async () => {
  const [made, empty] = pool(2);
  const log = [];
  made.add(task(log, 'a', async () => { throw new Problem({ status: 422, code: 'x' }); }));
  made.add(task(log, 'b', async () => { throw new Problem({ status: 503 }, 0); }));
  await empty;
  const failed = log.filter(([, what]) => what === 'failed').map(([name]) => name);
  assert.deepEqual(failed.sort(), ['a', 'b']);
  assert.equal(log.filter(([name, what]) => name === 'b' && what === 'run').length, 12);
});

test('a missing key holds all tasks until it is given', async () => {
  const [made, empty] = pool(1);
  const log = [];
  let open = false;
  const ask = async () => { if (!open) throw new Problem({ status: 401 }); };
  made.add(task(log, 'a', ask));
  made.add(task(log, 'b', ask));
  await new Promise(setImmediate);
  assert.deepEqual(log.map(([name, what]) => `${name} ${what}`), ['a run', 'a locked']);
  open = true;
  made.release();
  await empty;
  assert.deepEqual(log.slice(2).map(([name, what]) => `${name} ${what}`), ['a run', 'a done', 'b run', 'b done']);
});

test('stopping cancels running and waiting tasks', async () => {
  const [made, empty] = pool(1);
  const log = [];
  made.add(task(log, 'a', (signal) => new Promise((_, reject) => {
    signal.addEventListener('abort', () => reject(signal.reason));
  })));
  made.add(task(log, 'b', async () => {}));
  made.stop();
  await empty;
  assert.deepEqual(log.map(([name, what]) => `${name} ${what}`), ['a run', 'b stopped', 'a stopped']);
});

const { diff } = await load('diff.js');
const { compose, finished, groups, marked, token } = await load('query.js');

test('the words that differ are found', () => {
  const short = (before, after) => diff(before, after).map(({ kind, text }) => `${{ same: ' ', removed: '-', added: '+' }[kind]}${text}`);
  assert.deepEqual(short('a dog on a beach', 'a cat on a beach'), [' a', '-dog', '+cat', ' on a beach']);
  assert.deepEqual(short('', 'a cat'), ['+a cat']);
  assert.deepEqual(short('a  cat ', ''), ['-a cat']);
  assert.deepEqual(short('same', 'same'), [' same']);
  assert.deepEqual(diff('', ''), []);
  const long = 'word '.repeat(1000);
  assert.deepEqual(diff(long, `${long} more`).map(({ kind }) => kind), ['removed', 'added']);
});

test('filters are written into searches', () => {
  assert.equal(token('color', 'tan'), 'color:tan');
  assert.equal(token('tag', 'New York'), 'tag:"New York"');
  assert.equal(token('tag', 'say "hi"'), 'tag:"say  hi"');
  assert.equal(compose(' dog ', new Set(['color:tan', 'is:suggested'])), 'color:tan is:suggested dog ');
  assert.equal(finished('color:tan do'), 'color:tan do*');
  for (const q of ['', 'color:tan', '"a dog"', 'dog*']) assert.equal(finished(q), q);
  assert.equal(finished('dog '), 'dog');
});

test('facets become groups of filters, and chosen ones stay', () => {
  const facets = [
    { attribute: 'is', values: [{ value: 'reviewed', count: 2 }], exact: true },
    { attribute: 'tag', values: [{ value: 'beach', count: 3 }], exact: false },
    { attribute: 'mood', values: [], exact: true },
  ];
  const found = groups(facets, ['tag:"New York"'], 5);
  assert.deepEqual(found.map(({ title, exact }) => [title, exact]), [['Decisions', true], ['Tags', false]]);
  assert.deepEqual(found[0].filters.map((filter) => [filter.label, filter.count]), [['not reviewed', 3], ['reviewed', 2]]);
  assert.deepEqual(found[1].filters.map((filter) => [filter.token, filter.count]), [['tag:"New York"', 0], ['tag:beach', 3]]);
});

test('highlights are parts, not markup', () => {
  assert.deepEqual(marked('a \ue000<dog>\ue001 runs'), [
    { text: 'a ', marked: false },
    { text: '<dog>', marked: true },
    { text: ' runs', marked: false },
  ]);
});

test('photos are selected one by one and in ranges', () => {
  const items = Array.from({ length: 12_000 }, (_, n) => ({ hash: `h${n}` }));
  let heard = 0;
  const selection = new Selection(() => (heard += 1));
  selection.clear();
  assert.equal(heard, 0, 'nothing has changed');
  selection.toggle(items, 3);
  selection.extend(items, 5);
  assert.deepEqual(selection.hashes, ['h3', 'h4', 'h5']);
  selection.extend(items, 2);
  assert.deepEqual(selection.hashes, ['h3', 'h4', 'h5', 'h2'], 'a range begins where one was chosen by itself');
  selection.toggle(items, 4);
  assert.equal(selection.has('h4'), false);
  selection.toggle(items, 20_000);
  assert.deepEqual([selection.size, heard], [3, 4], 'a photo that is not loaded cannot be chosen');
  selection.clear();
  assert.deepEqual([selection.size, heard], [0, 5]);
  selection.extend(items, 7, 6);
  assert.deepEqual(selection.hashes, ['h6', 'h7']);
  selection.extend(items, 11_999);
  assert.deepEqual([selection.size, selection.full], [10_000, true], 'a request names each of them');
});

test('columns of the playground ask for what they say', async () => {
  const asked = [];
  const server = {
    caption: async (params) => (asked.push(params), 'a dog'),
    render: async (body) => (asked.push(body), 'rendered'),
  };
  assert.equal(await textOf({ kind: 'saved', reference: 'alt:2', variables: '{"a": 1}' }, server), 'a dog');
  assert.equal(await textOf({ kind: 'style', style: 'title', emoji: true }, server), 'a dog');
  assert.equal(await textOf({ kind: 'prefix', template: 'a {{ b }}', variables: '{"b": "c"}' }, server), 'a dog');
  assert.equal(await textOf({ kind: 'chain', template: '{{ title }}' }, server), 'rendered');
  assert.deepEqual(asked, [
    { template: 'alt:2', variables: '{"a":1}' },
    { style: 'title' },
    { content: { kind: 'prefix', template: 'a {{ b }}' }, variables: { b: 'c' } },
    { prompt: 'rendered' },
    {},
    { content: { kind: 'chain', template: '{{ title }}' }, variables: {}, caption: 'a dog' },
  ]);
  for (const wrong of ['[1]', 'null', '1']) assert.throws(() => variables(wrong), TypeError);
  assert.throws(() => variables('{'), SyntaxError);
  assert.equal(content({ kind: 'saved', reference: 'alt' }), undefined);
  assert.deepEqual(content({ kind: 'style', style: 'engaging', emoji: true }), { kind: 'style', style: 'engaging', emoji: true });
  assert.deepEqual([title({ kind: 'saved', reference: 'alt' }, 0), title({ kind: 'style' }, 3)], ['alt', 'Version D']);
});

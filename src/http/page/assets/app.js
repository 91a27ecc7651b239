// The page: takes photos, requests captions, and shows progress.

import { Problem, caption, key, modelInfo } from './api.js';
import { Card } from './card.js';
import { announce, byId, copyButton, count, h, save } from './dom.js';
import { listen } from './intake.js';
import { Pool } from './pool.js';
import { toCsv, toCurl, toJson } from './results.js';
import { Socket } from './socket.js';
import { Visit, thumbnail } from './visit.js';

/** Captions requested at a time with fetch. Browsers open six connections to a server; some stay free. */
const LIMIT = 4;
/** Captions requested at a time over one WebSocket. */
const SOCKET_LIMIT = 8;
/** Parameters of another caption: likely words, but not always the most likely ones. */
const ANOTHER = { do_sample: true, temperature: 0.7, top_p: 0.9 };
/** Up to this many photos, each caption is announced to screen readers; beyond it, only progress. */
const ANNOUNCED_EACH = 3;

const visit = new Visit();
const socket = new Socket(new URL('api/realtime', document.baseURI).href.replace(/^http/, 'ws'), () => pool.resume());
const pool = new Pool(() => (socket.open ? SOCKET_LIMIT : LIMIT), () => show());
const cards = new Set();
let run = { total: 0, done: 0, failed: 0, since: 0, announced: 0 };

// Captions

function settings() {
  const prompt = byId('prompt').value.trim();
  const beams = Number(byId('beams').value);
  return { ...(prompt && { prompt }), ...(beams > 1 && { num_beams: beams }) };
}

function take(files) {
  if (files.length === 0) return;
  const added = files.map((file) => new Card(file, { again, retry }));
  byId('photos').prepend(...added.map((card) => card.element));
  byId('again').hidden = false;
  for (const card of added) {
    cards.add(card);
    request(card, settings(), added.length > 1);
  }
  // When the photos are below the window, as on a phone.
  if (added[0].element.getBoundingClientRect().top > innerHeight * 0.7) byId('ledger').scrollIntoView();
}

/** Another caption. A new seed is never in the cache, and curl can repeat it. */
function again(card) {
  const [seed] = crypto.getRandomValues(new Uint32Array(1));
  request(card, { ...settings(), ...ANOTHER, seed });
}

function retry(card) {
  request(card, card.params ?? settings());
}

/** Asks over the WebSocket for one of many photos, or if it is open; else, or without an answer, with fetch. */
async function ask(file, params, options, many) {
  const answer = many || socket.open ? await socket.caption(file, params, options) : undefined;
  return answer ?? caption(file, params, options);
}

function request(card, params, many = false) {
  if (pool.open === 0) run = { total: 0, done: 0, failed: 0, since: performance.now(), announced: 0 };
  run.total += 1;
  card.params = params;
  card.queued();
  pool.add({
    async run(signal) {
      card.begin(params);
      const answer = await ask(card.file, params, { signal, onText: (text) => card.write(text) }, many);
      card.finish(answer, toCurl(address(), card.name, params, key.get() !== ''));
      run.done += 1;
      if (run.total <= ANNOUNCED_EACH) announce(`${card.name}: ${answer.caption}`);
      await remember(card, { status: 'ok', ...answer }, params);
    },
    waiting: (seconds) => card.waiting(seconds),
    locked(problem) {
      card.locked();
      askForKey(problem);
    },
    failed(error) {
      const problem = error instanceof Problem ? error : defect(error);
      run.failed += 1;
      card.fail(problem);
      if (run.total <= ANNOUNCED_EACH) announce(`${card.name}: ${problem.title}. ${problem.detail}`);
      remember(card, { status: 'error', error: problem.toJSON() }, params);
    },
    stopped() {
      run.total -= 1;
      card.stopped();
    },
  });
  show();
}

function defect(error) {
  const detail = `the server's answer could not be shown (${error.message}); reload the page`;
  return new Problem({ code: 'page', title: 'The page failed', detail });
}

const address = () => new URL('caption/generate', document.baseURI).href;

async function remember(card, outcome, parameters) {
  const result = { name: card.name, ...outcome, parameters, time: new Date().toISOString() };
  const thumb = outcome.status === 'ok' ? thumbnail(await card.picture()) : undefined;
  list(visit.add(result, thumb));
  show();
}

// Progress

function show() {
  document.body.toggleAttribute('data-empty', cards.size === 0);
  const running = pool.open > 0;
  const ended = run.done + run.failed;
  byId('ledger').hidden = !running && visit.entries.length === 0 && cards.size === 0;
  byId('count').textContent = running ? progress(ended) : summary();
  byId('progress').hidden = !running || run.total < 2;
  byId('progress').max = Math.max(1, run.total);
  byId('progress').value = ended;
  // A button that is hidden loses the focus.
  if (!running && document.activeElement === byId('stop')) byId('photos').focus();
  byId('stop').hidden = !running;
  byId('clear').hidden = running || cards.size === 0;
  for (const id of ['csv', 'json']) byId(id).hidden = visit.entries.length === 0;
  byId('visit').hidden = !visit.entries.some(({ result }) => result.status === 'ok');
  announceProgress(running, ended);
}

function progress(ended) {
  const failed = run.failed ? `, ${run.failed} of them failed` : '';
  const each = (performance.now() - run.since) / ended;
  const seconds = Math.ceil((each * (run.total - ended)) / 1000);
  const left = ended >= 4 && seconds > 1 ? `, about ${seconds} s left` : '';
  return `${ended} of ${count(run.total, 'photo')} done${failed}${left}`;
}

function summary() {
  const failed = visit.results.filter((result) => result.status === 'error').length;
  const captions = count(visit.entries.length - failed, 'caption');
  return `${captions} in this visit${failed ? `, ${count(failed, 'failure')}` : ''}`;
}

/** Announces progress now and then, and the end. */
function announceProgress(running, ended) {
  if (run.total <= ANNOUNCED_EACH) return;
  if (!running && run.announced < Infinity) {
    run.announced = Infinity;
    announce(`Done: ${count(run.done, 'caption')}, ${run.failed} failed`);
  } else if (running && ended - run.announced >= Math.max(5, run.total / 10)) {
    run.announced = ended;
    announce(progress(ended));
  }
}

// The contact sheet

function list({ result, thumb }) {
  if (result.status !== 'ok') return;
  const picture = thumb ? h('img', { src: thumb, alt: '', loading: 'lazy' }) : h('span', { class: 'blank' });
  if (!thumb && result.colors?.length) picture.style.setProperty('--color', result.colors[0].hex);
  const at = new Date(result.time);
  byId('sheet').prepend(
    h('li', {},
      h('div', { class: 'thumb' }, picture),
      h('div', {},
        h('p', { class: 'caption', text: result.caption }),
        h('p', { class: 'help' }, `${result.name}, `,
          h('time', { datetime: result.time, text: at.toLocaleTimeString([], { timeStyle: 'short' }) }))),
      copyButton('Copy', ` ${result.caption}`, () => result.caption)),
  );
}

// The key

function askForKey({ status, detail }) {
  const given = key.get() !== '';
  byId('key-form').hidden = false;
  const why = given || status === 403 ? 'The server rejected this key' : 'The server requires a key';
  byId('key-why').textContent = `${why}: ${detail}.`;
}

byId('key-form').addEventListener('submit', (event) => {
  event.preventDefault();
  key.set(byId('key').value.trim());
  byId('key-why').textContent = '';
  byId('key-form').hidden = true;
  byId('files').focus();
  pool.release();
  describe();
});

// The server

async function describe() {
  const server = byId('server');
  try {
    const { id, precision, device } = await modelInfo();
    server.replaceChildren(h('strong', { text: id }), ` ${precision} on ${device}`);
  } catch (problem) {
    if (problem.locked) {
      server.textContent = 'API key required';
      askForKey(problem);
    } else {
      server.textContent = problem.passing ? 'The model is loading' : problem.title;
      setTimeout(describe, 1000 * Math.min(30, problem.retryAfter ?? 5));
    }
  }
}

// Buttons

listen(byId('drop'), byId('files'), take);
byId('settings').addEventListener('submit', (event) => {
  event.preventDefault();
  const ended = [...cards].filter((card) => !card.busy);
  for (const card of ended) request(card, settings(), ended.length > 1);
});
byId('beams').addEventListener('input', () => (byId('beams-value').textContent = byId('beams').value));
byId('stop').addEventListener('click', () => pool.stop());
byId('clear').addEventListener('click', () => {
  for (const card of cards) card.remove();
  cards.clear();
  byId('again').hidden = true;
  byId('files').focus();
  show();
});
byId('csv').addEventListener('click', () => save('captions.csv', 'text/csv', toCsv(visit.results)));
byId('json').addEventListener('click', () => save('captions.json', 'application/json', toJson(visit.results)));
byId('forget').addEventListener('click', () => {
  visit.clear();
  byId('sheet').replaceChildren();
  byId('files').focus();
  announce('Deleted');
  show();
});

byId('beams-value').textContent = byId('beams').value;
visit.entries.forEach(list);
show();
describe();

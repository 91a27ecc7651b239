// The playground: up to 20 photos and 4 versions of prompts, side by side.

import { ask, caption, key } from './api.js';
import { diff } from './diff.js';
import { announce, byId, count, h } from './dom.js';
import { Pool } from './pool.js';
import { KINDS, MOST_PHOTOS, MOST_VERSIONS, STYLES, content, text, title } from './versions.js';

/** Requests at a time. */
const AT_ONCE = 4;
const PARTS = { same: 'span', removed: 'del', added: 'ins' };

const columns = [];
let open = 0;
const pool = new Pool(() => AT_ONCE, () => {});

const json = { 'content-type': 'application/json' };
const send = (path, body) => ask(path, { method: 'POST', headers: json, body: JSON.stringify(body) });

/** A labelled control. */
function field(id, label, control) {
  control.id = id;
  return h('div', { class: 'field' }, h('label', { for: id, text: label }), control);
}

function select(options) {
  return h('select', {}, ...options.map(([value, label]) => h('option', { value, text: label })));
}

/** A column: the controls of one version. */
function column(number) {
  const id = (name) => `${name}-${number}`;
  const kind = select(KINDS);
  const reference = h('input', { type: 'text', placeholder: 'name@label', autocomplete: 'off', spellcheck: 'false' });
  const template = h('textarea', { spellcheck: 'false', maxlength: '16000' });
  const style = select(STYLES.map((name) => [name, name.replace('_', ' ')]));
  const emoji = h('input', { type: 'checkbox', id: id('emoji') });
  const variables = h('input', { type: 'text', placeholder: '{}', autocomplete: 'off', spellcheck: 'false' });
  const name = h('input', { type: 'text', autocomplete: 'off', spellcheck: 'false' });
  const save = h('button', { type: 'button', text: 'Save as version' });
  const parts = {
    saved: [field(id('reference'), 'Prompt', reference)],
    template: [field(id('template'), 'Template', template)],
    style: [field(id(`style`), 'Style', style), h('label', { class: 'check', for: id('emoji') }, emoji, 'with emoji')],
    variables: [field(id('variables'), 'Variables, as JSON', variables)],
    save: [field(id('name'), 'Save under the name', name), save],
  };
  const value = () => ({
    kind: kind.value,
    reference: reference.value.trim(),
    template: template.value,
    style: style.value,
    emoji: emoji.checked,
    variables: variables.value,
  });
  const show = () => {
    const shown = {
      saved: kind.value === 'saved',
      template: kind.value === 'prefix' || kind.value === 'chain',
      style: kind.value === `style`,
      variables: kind.value !== `style`,
      save: kind.value !== 'saved',
    };
    for (const [part, elements] of Object.entries(parts)) {
      for (const element of elements) element.hidden = !shown[part];
    }
  };
  kind.value = `style`;
  style.value = number === 0 ? 'caption' : 'engaging';
  kind.addEventListener('change', show);
  save.addEventListener('click', () => store(value(), name.value.trim()));
  const heading = `Version ${'ABCD'[number]}`;
  const element = h(
    'fieldset', { class: 'version' }, h('legend', { text: heading }),
    field(id('kind'), 'What it is', kind), ...Object.values(parts).flat(),
  );
  show();
  byId('versions').append(element);
  columns.push({ value });
}

async function store(version, name) {
  await guarded(async () => {
    const path = `prompts/${encodeURIComponent(name || ' ')}/versions`;
    const answer = await send(path, { content: content(version), message: 'from the playground' });
    const { version: number } = await answer.json();
    announce(`Saved as ${name}:${number}`);
    byId('count').textContent = `Saved as ${name}:${number}`;
  });
}

/** Does something, and shows why it failed. */
async function guarded(work) {
  byId('error').hidden = true;
  try {
    await work();
  } catch (problem) {
    if (problem.locked) locked(problem);
    else complain(problem.detail ?? problem.message);
  }
}

function complain(why) {
  byId('error').textContent = why;
  byId('error').hidden = false;
}

function locked(problem) {
  byId('key-why').textContent = problem.detail;
  byId('key-form').hidden = false;
  byId('key').focus();
}

/** The difference to the text of the first column. */
function compared(first, now) {
  if (first === undefined || first === now) return [now];
  return diff(first, now).flatMap(({ kind, text }) => [h(PARTS[kind], { text }), ' ']);
}

function compare() {
  byId('error').hidden = true;
  pool.stop();
  const files = [...byId('photos').files];
  const versions = columns.map((one) => one.value());
  if (!files.length) return complain('There are no photos yet; choose some.');
  if (files.length > MOST_PHOTOS) return complain(`Choose at most ${MOST_PHOTOS} photos.`);
  const heads = versions.map((version, number) => h('th', { scope: 'col', text: title(version, number) }));
  const body = h('tbody');
  const what = 'Words that differ from the first column are marked.';
  const table = h('table', {}, h('caption', { text: what }), h('thead', {}, h('tr', {}, h('th', { scope: 'col', text: 'Photo' }), ...heads)), body);
  byId('results').replaceChildren(table);
  byId('results').hidden = false;
  open = files.length * versions.length;
  files.forEach((file) => body.append(row(file, versions)));
}

function row(file, versions) {
  const url = URL.createObjectURL(file);
  const picture = h('img', { src: url, alt: '', onload: () => URL.revokeObjectURL(url) });
  const cells = versions.map(() => h('td', { text: '…' }));
  const texts = [];
  const redraw = () => texts.forEach((now, at) => now !== undefined && cells[at].replaceChildren(...(at ? compared(texts[0], now) : [now])));
  versions.forEach((version, at) => pool.add(task(file, version, cells[at], (now) => { texts[at] = now; redraw(); })));
  return h('tr', {}, h('th', { scope: 'row' }, picture, file.name), ...cells);
}

/** A task for the pool: the text of one cell. */
function task(file, version, cell, done) {
  const end = (why) => {
    if (why) cell.replaceChildren(h('span', { class: 'fault', text: why }));
    open -= 1;
    byId('count').textContent = open ? `${count(open, 'text')} to go` : 'Done';
    if (!open) announce('All texts are there');
  };
  return {
    run: async (signal) => {
      const said = await text(version, {
        caption: async (params) => (await caption(file, params, { signal, onText: () => {} })).caption,
        render: async (what) => (await (await send('prompts/render', what)).json()).text,
      });
      done(said);
      end();
    },
    waiting: () => {},
    locked,
    failed: (problem) => end(problem.detail ?? problem.message),
    stopped: () => {},
  };
}

byId('play').addEventListener('submit', (event) => {
  event.preventDefault();
  compare();
});
byId('add').addEventListener('click', () => {
  if (columns.length < MOST_VERSIONS) column(columns.length);
  if (columns.length === MOST_VERSIONS) byId('add').hidden = true;
});
byId('key-form').addEventListener('submit', (event) => {
  event.preventDefault();
  key.set(byId('key').value);
  byId('key-form').hidden = true;
  pool.release();
});
column(0);
column(1);

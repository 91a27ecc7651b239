// The gallery: searches the library, and shows, edits and reviews what it finds.

import { Problem, key } from './api.js';
import { Again, Bulk } from './bulk.js';
import { Detail } from './detail.js';
import { announce, byId, count, h } from './dom.js';
import { change, edit } from './editor.js';
import { Grid } from './grid.js';
import * as library from './library.js';
import { Photos } from './photos.js';
import { compose, finished, groups } from './query.js';
import { Runs } from './runs.js';
import { Selection } from './selection.js';

/** Milliseconds after the last key before a search. */
const PAUSE = 120;
/** Filters of a group before "more". */
const SOME = 8;

let filters = new Set();
let timer;
let asked = new AbortController();
let known = [];
const wide = new Set();

const photos = new Photos({ changed: show, failed });
const selection = new Selection(showSelection);
const grid = new Grid(byId('grid'), {
  photos: () => photos,
  field: () => byId('field').value,
  selected: (hash) => selection.has(hash),
  pick: ({ index }, range) => select(() => selection[range ? 'extend' : 'toggle'](photos.items, index)),
  extend: (index, start) => select(() => selection.extend(photos.items, index, start)),
  drop: () => select(() => selection.clear()),
  more: () => photos.more(),
  open: (cell) => cell.photo && open(cell.photo, cell.index),
  edit: editInPlace,
  decide,
});
const detail = new Detail({
  changed: replace,
  failed,
  step: async (index) => {
    if (index >= photos.items.length) await photos.more();
    if (photos.items[index]) open(photos.items[index], index);
  },
  closed: (index) => grid.focus(index),
});
const runs = new Runs({ changed: () => search(), failed });
const bulk = new Bulk({ done: changedMany, failed });
const again = new Again({ started: () => runs.show() });

// Search

const words = () => byId('q').value;
const query = () => compose(words(), filters);

function search({ soon = false } = {}) {
  clearTimeout(timer);
  timer = setTimeout(run, soon ? PAUSE : 0);
}

async function run() {
  const q = query();
  remember();
  byId('grid').setAttribute('aria-busy', 'true');
  asked.abort();
  asked = new AbortController();
  const { signal } = asked;
  const found = await photos.search({ q, unfinished: true, sort: byId('sort').value });
  if (signal.aborted) return;
  byId('grid').setAttribute('aria-busy', 'false');
  if (!found) return;
  // What is not shown any more must not be changed by surprise.
  selection.clear();
  grid.restart();
  try {
    const facets = await library.facets(finished(q), signal);
    if (!signal.aborted) listFilters(facets);
  } catch (error) {
    failed(error);
  }
}

/** The search is in the address, so that it can be kept and sent. */
function remember() {
  const kept = new URLSearchParams();
  if (words().trim()) kept.set('q', words().trim());
  for (const filter of filters) kept.append('filter', filter);
  if (byId('sort').value) kept.set('sort', byId('sort').value);
  if (byId('field').value !== 'caption') kept.set('field', byId('field').value);
  history.replaceState(null, '', `${location.pathname}${kept.size ? `?${kept}` : ''}`);
}

function recall() {
  const kept = new URLSearchParams(location.search);
  byId('q').value = kept.get('q') ?? '';
  filters = new Set(kept.getAll('filter'));
  for (const name of ['sort', 'field']) {
    const given = kept.get(name);
    if ([...byId(name).options].some(({ value }) => value === given)) byId(name).value = given;
  }
}

function show() {
  clearProblem();
  const { items, total, exact } = photos;
  const all = total ?? items.length;
  byId('count').textContent = `${exact ? '' : 'more than '}${count(all, 'photo').replace(/^\d+/, (n) => Number(n).toLocaleString())}`;
  byId('nothing').hidden = items.length > 0;
  byId('nothing-yet').hidden = Boolean(query());
  byId('nothing-found').hidden = !query();
  for (const id of ['show-bulk', 'show-again', 'show-suggestions']) byId(id).hidden = items.length === 0;
  grid.draw();
}

/** The photos that are meant: those that are selected, or all. */
const meant = () => (selection.size ? { photos: selection.hashes } : { q: finished(query()) });

function showSelection() {
  const some = selection.size > 0;
  const which = some ? count(selection.size, 'photo') : 'all';
  byId('show-bulk').textContent = `Change ${which}…`;
  byId('show-again').textContent = `Caption ${which} again…`;
  byId('clear-selection').hidden = !some;
  byId('grid').toggleAttribute('data-picking', some);
  grid.draw();
}

/** Changes the selection, and says what it is. */
function select(change) {
  change();
  const most = selection.full ? ', which is the most' : '';
  announce(selection.size ? `${count(selection.size, 'photo')} selected${most}` : 'Nothing selected');
}

// Filters

function listFilters(facets) {
  known = facets;
  // Of very many photos, only some are counted.
  const total = photos.exact && facets.every(({ exact }) => exact) ? photos.total : undefined;
  const list = byId('filter-groups');
  const back = list.contains(document.activeElement) ? document.activeElement.dataset.token : undefined;
  list.replaceChildren(...groups(facets, [...filters], total).map(group));
  if (back) list.querySelector(`[data-token="${CSS.escape(back)}"]`)?.focus();
  byId('chosen').textContent = filters.size ? `(${filters.size})` : '';
  byId('clear-filters').hidden = filters.size === 0;
}

function group({ title, exact, filters: all }) {
  const some = wide.has(title) ? all : all.filter((one, n) => n < SOME || filters.has(one.token));
  const buttons = some.map(({ token, kind, value, label, count: number }) => {
    const pressed = filters.has(token);
    const made = h('button', {
      type: 'button', class: 'filter', 'aria-pressed': String(pressed), 'data-token': token,
      onclick: () => toggle(token),
    });
    if (kind === 'color') made.append(dot(value));
    made.append(h('span', { text: label }), ' ', h('span', { class: 'number', text: `${number}${exact ? '' : '+'}` }));
    return h('li', {}, made);
  });
  if (all.length > some.length) {
    const more = h('button', { type: 'button', class: 'filter more', 'data-token': `more ${title}` },
      h('span', { text: `${all.length - some.length} more` }), h('span', { class: 'unseen', text: ` ${title}` }));
    more.addEventListener('click', () => {
      wide.add(title);
      listFilters(known);
      byId('filter-groups').querySelector(`[aria-label="${title}"]`)?.children[SOME]?.firstChild.focus();
    });
    buttons.push(h('li', {}, more));
  }
  return h('div', { class: 'group' }, h('h2', { text: title }), h('ul', { 'aria-label': title }, ...buttons));
}

/** A colour of CSS, by its name. */
function dot(name) {
  const made = h('span', { class: 'dot' });
  if (/^[a-z]+$/.test(name)) made.style.setProperty('--color', name);
  return made;
}

function toggle(token) {
  if (!filters.delete(token)) filters.add(token);
  search();
}

// Photos

function open(photo, index) {
  detail.show(photo, index, { first: index === 0, last: index === photos.items.length - 1 && !photos.open });
}

function replace(photo) {
  const index = photos.replace(photo);
  if (index >= 0) grid.draw();
}

async function editInPlace(cell) {
  if (!cell.photo || cell.element.querySelector('.editor')) return;
  const { index } = cell;
  cell.element.toggleAttribute('data-editing', true);
  const now = await edit(cell.element, cell.photo, byId('field').value).catch(failed);
  cell.element.toggleAttribute('data-editing', false);
  if (now) replace(now);
  grid.focus(index);
}

async function decide(cell, what) {
  const field = byId('field').value;
  if (!cell.photo || !library.textOf(cell.photo, field)?.suggestion) return;
  const { index } = cell;
  try {
    const now = await change(cell.photo, field, { action: what });
    if (now) {
      announce(what === 'accept' ? 'Accepted' : 'Rejected');
      replace(now);
    }
  } catch (error) {
    failed(error);
  }
  grid.focus(index);
}

function changedMany({ run: number, changed, conflicts }) {
  const left = conflicts ? `, ${conflicts} left alone because they were changed meanwhile` : '';
  const undo = h('button', { type: 'button' }, 'Undo');
  undo.addEventListener('click', async () => {
    try {
      const back = await library.undo(number);
      say(`${count(back.changed, 'text')} taken back.`);
      search();
    } catch (error) {
      failed(error);
    }
  });
  say(`${count(changed, 'photo')} changed${left}.`, number === undefined ? undefined : undo);
  search();
}

// Messages

function say(text, more) {
  byId('said').replaceChildren(h('span', { text }), ...(more ? [' ', more] : []));
  byId('said').hidden = false;
  announce(text);
}

function clearProblem() {
  byId('problem').hidden = true;
}

function failed(error) {
  byId('grid').setAttribute('aria-busy', 'false');
  if (error.name === 'AbortError') return;
  if (error.locked) {
    askForKey(error);
    return;
  }
  const text = error instanceof Problem ? `${error.title}: ${error.detail}.` : `The page failed: ${error.message}.`;
  byId('problem').textContent = text;
  byId('problem').hidden = false;
  byId('detail-state').textContent = detail.open ? text : '';
}

function askForKey({ status, detail: why }) {
  const given = key.get() !== '';
  for (const dialog of document.querySelectorAll('dialog[open]')) dialog.close();
  byId('key-form').hidden = false;
  const what = given || status === 403 ? 'The server rejected this key' : 'The server requires a key';
  byId('key-why').textContent = `${what}: ${why}.`;
  byId('key').focus();
}

// Controls

byId('key-form').addEventListener('submit', (event) => {
  event.preventDefault();
  key.set(byId('key').value.trim());
  byId('key-form').hidden = true;
  byId('key-why').textContent = '';
  byId('q').focus();
  search();
});
byId('search').addEventListener('submit', (event) => {
  event.preventDefault();
  search();
});
byId('q').addEventListener('input', () => search({ soon: true }));
byId('q').addEventListener('keydown', (event) => {
  if (event.key !== 'ArrowDown' || photos.items.length === 0) return;
  event.preventDefault();
  grid.focus();
});
byId('sort').addEventListener('change', () => search());
byId('field').addEventListener('change', () => {
  remember();
  grid.draw();
});
byId('clear-filters').addEventListener('click', () => {
  filters.clear();
  byId('q').focus();
  search();
});
byId('show-bulk').addEventListener('click', () => bulk.show(meant(), byId('field').value));
byId('show-suggestions').addEventListener('click', () => {
  filters.add('is:suggested');
  search();
});
byId('show-again').addEventListener('click', () => again.show(meant()));
byId('clear-selection').addEventListener('click', () => {
  select(() => selection.clear());
  grid.focus();
});
addEventListener('popstate', () => {
  recall();
  search();
});
for (const prefix of ['again', 'all']) {
  const [beams, value] = [byId(`${prefix}-beams`), byId(`${prefix}-beams-value`)];
  const write = () => (value.textContent = beams.value);
  beams.addEventListener('input', write);
  write();
}
// On a wide window the filters stand beside the photos.
byId('filters').open = matchMedia('(min-width: 60rem)').matches;

recall();
search();

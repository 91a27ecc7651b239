// Changes of all photos of a search, or of those that are selected: first a rehearsal, then the change.

import { Problem } from './api.js';
import { shown } from './cell.js';
import { parameters } from './detail.js';
import { byId, count, h } from './dom.js';
import { differences } from './editor.js';
import * as library from './library.js';

/** Milliseconds after the last key before a rehearsal. */
const PAUSE = 250;

/** The dialog that changes many photos. */
export class Bulk {
  #dialog = byId('bulk');
  #which = { q: '' };
  #turn = 0;
  #timer;
  #actions;

  /** @param actions `done(report, words)` hears what was changed, `failed(error)` of errors. */
  constructor(actions) {
    this.#actions = actions;
    byId('bulk-close').addEventListener('click', () => this.#dialog.close());
    this.#dialog.addEventListener('close', () => byId('show-bulk').focus());
    const form = byId('bulk-form');
    form.addEventListener('input', () => {
      clearTimeout(this.#timer);
      this.#timer = setTimeout(() => this.#rehearse(), PAUSE);
    });
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.#run();
    });
  }

  /** Opens the dialog for `which` photos: `{ q }`, a search, or `{ photos }`, hashes. */
  show(which, field, action = 'accept') {
    this.#which = which;
    byId('bulk-title').textContent = title('Change', which);
    byId('bulk-field').value = field;
    byId('bulk-action').value = action;
    byId('bulk-which').textContent = described(which);
    this.#dialog.showModal();
    byId('bulk-action').focus();
    this.#rehearse();
  }

  /** What is asked for; undefined while something is missing. */
  #change() {
    const [action, field] = [byId('bulk-action').value, byId('bulk-field').value];
    const tags = action === 'add_tags' || action === 'remove_tags';
    byId('bulk-fields').hidden = tags;
    byId('bulk-find-row').hidden = action !== 'replace';
    byId('bulk-text-row').hidden = !tags && action !== 'replace';
    byId('bulk-text-label').textContent = tags ? 'Tags, separated by commas' : 'Replace with';
    const text = byId('bulk-text').value;
    if (tags) {
      const all = text.split(/[,;\n]/).map((tag) => tag.trim()).filter(Boolean);
      return all.length ? { action, tags: all } : undefined;
    }
    if (action === 'replace') {
      const find = byId('bulk-find').value;
      return find ? { action, field, find, replace: text } : undefined;
    }
    return { action, field };
  }

  async #rehearse() {
    const change = this.#change();
    const turn = ++this.#turn;
    const go = byId('bulk-go');
    go.setAttribute('aria-disabled', 'true');
    byId('bulk-samples').replaceChildren();
    if (!change) {
      byId('bulk-count').textContent = 'Say which words.';
      return;
    }
    byId('bulk-count').textContent = 'Counting…';
    try {
      const { matched, changed, samples } = await library.bulk(this.#which, change, true);
      if (turn !== this.#turn) return;
      byId('bulk-count').textContent = `${changed} of ${count(matched, 'photo')} would change.`;
      byId('bulk-go-words').textContent = changed ? `Change ${count(changed, 'photo')}` : 'Change';
      go.setAttribute('aria-disabled', String(changed === 0));
      const field = change.field ?? 'tags';
      byId('bulk-samples').replaceChildren(...samples.slice(0, 8).map(({ name, before, after }) =>
        h('li', {}, h('p', { class: 'help', text: name.split(/[/\\]/).pop() }),
          differences(shown(field, before), shown(field, after)))));
    } catch (error) {
      if (turn === this.#turn) byId('bulk-count').textContent = message(error);
    }
  }

  async #run() {
    const change = this.#change();
    const go = byId('bulk-go');
    if (!change || go.getAttribute('aria-disabled') === 'true') return;
    go.setAttribute('aria-disabled', 'true');
    try {
      const report = await library.bulk(this.#which, change, false);
      this.#dialog.close();
      this.#actions.done(report);
    } catch (error) {
      byId('bulk-count').textContent = message(error);
    }
  }
}

/** The dialog that captions all photos of a search again. */
export class Again {
  #dialog = byId('again-all');
  #which = { q: '' };
  #actions;

  /** @param actions `started(job)` hears of the job. */
  constructor(actions) {
    this.#actions = actions;
    byId('all-close').addEventListener('click', () => this.#dialog.close());
    this.#dialog.addEventListener('close', () => byId('show-again').focus());
    byId('all-form').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#start();
    });
  }

  async show(which) {
    this.#which = which;
    byId('all-title').textContent = `${title('Caption', which)} again`;
    const state = byId('all-state');
    state.textContent = 'Counting…';
    byId('all-which').textContent = described(which);
    this.#dialog.showModal();
    byId('all-prompt').focus();
    try {
      const { matched } = await library.regenerateAll(which, {}, true);
      state.textContent = `${count(matched, 'photo')}. Those whose files are not on the server's machine are left out.`;
    } catch (error) {
      state.textContent = message(error);
    }
  }

  async #start() {
    try {
      const job = await library.regenerateAll(this.#which, parameters('all'), false);
      this.#dialog.close();
      this.#actions.started(job);
    } catch (error) {
      byId('all-state').textContent = message(error);
    }
  }
}

const title = (verb, { photos }) => `${verb} ${photos ? count(photos.length, 'photo') : 'all'}`;

function described({ q, photos }) {
  if (photos) return photos.length === 1 ? 'The photo that is selected' : 'The photos that are selected';
  return q ? `All photos that this search finds: ${q}` : 'All photos of the library';
}

const message = (error) => (error instanceof Problem ? `${error.title}: ${error.detail}.` : String(error));

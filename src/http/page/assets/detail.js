// Everything about one photo: its texts, suggestions, history, and photos that look like it.

import { Problem } from './api.js';
import { FIELDS, shown, stripes } from './cell.js';
import { announce, button, byId, h, size } from './dom.js';
import { change, differences, edit } from './editor.js';
import * as library from './library.js';

const DONE = {
  write: 'wrote',
  suggest: 'suggested',
  accept: 'accepted',
  reject: 'rejected',
  clear: 'deleted',
  revert: 'went back to',
  undo: 'took back',
};
const NEIGHBOURS = 12;

export const when = (time) => new Date(time).toLocaleString([], { dateStyle: 'medium', timeStyle: 'short' });

/** Who wrote a text, and how. */
export function author({ kind, name, prompt }) {
  if (kind === 'model') return prompt ? `${name}, prompt “${prompt}”` : name;
  return kind === 'import' ? `imported: ${name}` : name === 'http' ? 'a person' : name;
}

/** The dialog that shows a photo. */
export class Detail {
  #dialog = byId('detail');
  #photo;
  #index;
  #actions;
  #turn = 0;

  /** @param actions `changed(photo)` hears of changes, `step(by)` moves to a neighbour, `failed(error)`, `closed(index)`. */
  constructor(actions) {
    this.#actions = actions;
    this.#dialog.addEventListener('close', () => actions.closed(this.#index));
    byId('detail-close').addEventListener('click', () => this.#dialog.close());
    byId('detail-before').addEventListener('click', () => actions.step(this.#index - 1));
    byId('detail-after').addEventListener('click', () => actions.step(this.#index + 1));
    this.#dialog.addEventListener('keydown', (event) => {
      if (event.target.closest('textarea, input, select') || event.altKey || event.ctrlKey || event.metaKey) return;
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      actions.step(this.#index + step);
    });
    byId('detail-history').addEventListener('toggle', () => this.#history());
    byId('detail-similar').addEventListener('toggle', () => this.#similar());
    byId('again-one').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#again();
    });
  }

  get open() {
    return this.#dialog.open;
  }

  /** Shows a photo. `index` is its place in the result, or undefined if it is not in it. */
  show(photo, index, { first = false, last = false } = {}) {
    const other = photo.hash !== this.#photo?.hash;
    this.#photo = photo;
    if (index !== undefined) this.#index = index;
    this.#turn += 1;
    byId('detail-title').textContent = library.nameOf(photo);
    for (const [id, hidden] of [['detail-before', first], ['detail-after', last]]) {
      byId(id).setAttribute('aria-disabled', String(hidden));
    }
    if (other) {
      byId('detail-history').open = false;
      byId('detail-similar').open = false;
      byId('again-state').textContent = '';
    }
    this.#picture();
    this.#facts();
    byId('detail-texts').replaceChildren(...Object.keys(FIELDS).map((field) => this.#section(field)));
    if (byId('detail-history').open) this.#history();
    if (!this.#dialog.open) {
      this.#dialog.showModal();
      this.#dialog.scrollTop = 0;
      byId('detail-title').focus();
    }
  }

  async #picture() {
    const [photo, frame] = [this.#photo, byId('detail-picture')];
    frame.style.setProperty('--stripes', stripes(photo));
    const address = await library.thumbnail(photo).catch(() => undefined);
    if (photo.hash !== this.#photo.hash) return;
    const text = library.textOf(photo, 'alt_text')?.text || library.textOf(photo, 'caption')?.text || library.nameOf(photo);
    frame.replaceChildren(...(address ? [h('img', { src: address, alt: text })] : []));
  }

  #facts() {
    const photo = this.#photo;
    const facts = [
      photo.width && photo.height ? `${photo.width} × ${photo.height} ${(photo.format ?? '').toUpperCase()}` : undefined,
      photo.bytes ? size(photo.bytes) : undefined,
      photo.mood,
      photo.taken_at ? `taken ${when(photo.taken_at)}` : `added ${when(photo.added_at)}`,
      ...(photo.colors ?? []).map(({ name, percent }) => `${name} ${percent} %`),
    ];
    byId('detail-facts').replaceChildren(...facts.filter(Boolean).map((text) => h('li', { text })));
    byId('detail-names').replaceChildren(...photo.names.map(({ name }) => h('li', { text: name })));
  }

  /** One of the texts, with what can be done with it. */
  #section(field) {
    const text = library.textOf(this.#photo, field);
    const words = text?.text ? shown(field, text.text) : '';
    const of = ` ${FIELDS[field]}`;
    const section = h('section', { class: 'text-of', 'data-field': field });
    const title = `text-${field}`;
    section.setAttribute('aria-labelledby', title);
    const empty = text?.action === 'clear' ? 'Deleted. No model writes it again.' : 'None yet.';
    section.append(
      h('h3', { id: title, text: FIELDS[field] }),
      words ? h('p', { class: 'quote', text: words }) : h('p', { class: 'help', text: empty }),
    );
    if (words) {
      const sure = text.confidence === undefined ? '' : `, confidence ${text.confidence.toFixed(2)}`;
      const by = text.by ? `, ${text.action === 'accept' ? 'accepted by' : 'by'} ${author(text.by)}` : '';
      section.append(h('p', { class: 'help', text: `${author(text.author)}${by}${sure}${text.reviewed ? ', reviewed' : ''}` }));
    }
    const row = h('div', { class: 'row' }, button('Edit', of, { onclick: () => this.#edit(section, field) }));
    if (words && !text.reviewed) row.append(button('Confirm', of, { onclick: () => this.#do(field, { action: 'accept' }, 'Confirmed') }));
    if (words) row.append(button('Delete', of, { onclick: () => this.#do(field, { action: 'clear' }, 'Deleted') }));
    if (words && text.author.kind === 'model') {
      row.append(
        button('Good', of, { onclick: () => this.#rate(field, true) }),
        button('Not good', of, { onclick: () => this.#reason(section, field) }),
      );
    }
    section.append(row);
    if (text?.suggestion) section.append(this.#suggestion(field, text));
    return section;
  }

  #suggestion(field, text) {
    const { suggestion } = text;
    const of = ` the suggested ${FIELDS[field]}`;
    return h('div', { class: 'suggestion' },
      h('h4', { text: 'Suggestion' }),
      differences(shown(field, text.text), shown(field, suggestion.text)),
      h('p', { class: 'help', text: author(suggestion.author) }),
      h('div', { class: 'row' },
        button('Accept', of, { class: 'strong', onclick: () => this.#do(field, { action: 'accept' }, 'Accepted') }),
        button('Reject', of, { onclick: () => this.#do(field, { action: 'reject' }, 'Rejected') })));
  }

  async #edit(section, field) {
    if (section.querySelector('.editor')) return;
    this.#changed(await edit(section, this.#photo, field), field);
  }

  async #do(field, action, said) {
    try {
      const now = await change(this.#photo, field, action);
      if (now) announce(said);
      this.#changed(now, field);
    } catch (error) {
      this.#actions.failed(error);
    }
  }

  /** Shows another version of the photo, with the focus where it was. */
  #changed(photo, field) {
    if (photo && photo.hash === this.#photo.hash) {
      this.show(photo);
      this.#actions.changed(photo);
    }
    byId('detail-texts').querySelector(`[data-field="${field}"] button`)?.focus();
  }

  async #rate(field, good, reason) {
    try {
      await library.rate(this.#photo.hash, field, good, reason);
      announce('Thank you, it is noted');
      byId('detail-state').textContent = 'Thank you, it is noted.';
    } catch (error) {
      this.#actions.failed(error);
    }
  }

  #reason(section, field) {
    if (section.querySelector('.reason')) return;
    const id = `reason-${field}`;
    const input = h('input', { type: 'text', id, maxlength: '500', autocomplete: 'off' });
    const form = h('form', { class: 'reason' },
      h('label', { for: id, text: 'What is wrong with it?' }),
      h('div', { class: 'row' }, input, h('button', {}, 'Send')));
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      form.remove();
      section.querySelector('button').focus();
      this.#rate(field, false, input.value.trim());
    });
    section.append(form);
    input.focus();
  }

  async #history() {
    const [photo, list] = [this.#photo, byId('history')];
    if (!byId('detail-history').open) return;
    const turn = this.#turn;
    let revisions;
    try {
      revisions = await library.history(photo.hash);
    } catch (error) {
      return this.#actions.failed(error);
    }
    if (turn !== this.#turn) return;
    const byNumber = new Map(revisions.map((revision) => [revision.id, revision]));
    list.replaceChildren(...revisions.map((revision) => this.#revision(revision, byNumber)));
  }

  #revision(revision, byNumber) {
    const { field, action, text, by, run } = revision;
    const before = byNumber.get(revision.previous)?.text ?? '';
    const who = author(by ?? revision.author);
    const what = `${who} ${DONE[action]} ${action === 'clear' ? `the ${FIELDS[field]}` : `this ${FIELDS[field]}`}`;
    const facts = [when(revision.created_at), run ? `run ${run}` : '', revision.current ? 'shown now' : ''];
    const can = !revision.current && text && !['reject', 'suggest'].includes(action);
    return h('li', {},
      h('p', {}, h('strong', { text: what })),
      h('p', { class: 'help', text: facts.filter(Boolean).join(', ') }),
      differences(shown(field, before), shown(field, text)),
      can ? button('Go back to this', ` ${FIELDS[field]}`, {
        onclick: () => this.#do(field, { action: 'revert', revision: revision.id }, 'It is back'),
      }) : undefined);
  }

  async #similar() {
    const [photo, list] = [this.#photo, byId('similar')];
    if (!byId('detail-similar').open) return;
    list.replaceChildren();
    byId('similar-state').textContent = 'Searching…';
    try {
      const found = await library.similar(photo.hash, NEIGHBOURS);
      const others = found.filter(({ hash }) => hash !== photo.hash);
      const photos = await Promise.all(others.map(({ hash }) => library.asset(hash)));
      const pictures = await Promise.all(photos.map((one) => library.thumbnail(one).catch(() => undefined)));
      if (photo.hash !== this.#photo.hash) return;
      byId('similar-state').textContent = photos.length ? '' : 'There is no other photo to compare with.';
      list.replaceChildren(...photos.map((one, n) => h('li', {}, this.#neighbour(one, pictures[n], others[n].score))));
    } catch (error) {
      byId('similar-state').textContent = error instanceof Problem ? `${error.detail}.` : String(error);
    }
  }

  #neighbour(photo, address, score) {
    const name = `${library.nameOf(photo)}, ${Math.round(100 * score)} % alike`;
    const open = h('button', { type: 'button', class: 'picture', onclick: () => this.show(photo) },
      address ? h('img', { src: address, alt: '' }) : undefined, h('span', { class: 'unseen', text: name }));
    open.style.setProperty('--stripes', stripes(photo));
    return open;
  }

  async #again() {
    const photo = this.#photo;
    const state = byId('again-state');
    const go = byId('again-go');
    if (go.getAttribute('aria-disabled') === 'true') return;
    go.setAttribute('aria-disabled', 'true');
    state.textContent = 'Captioning…';
    try {
      const done = await library.regenerate(photo.hash, parameters('again'));
      const words = {
        current: 'It is shown now.',
        suggested: 'It waits as a suggestion, because a person decided about the present text.',
        unchanged: 'It is nothing new: the library has this text, or it was rejected.',
      };
      const now = await library.asset(photo.hash);
      if (photo.hash === this.#photo.hash) this.show(now);
      this.#actions.changed(now);
      state.textContent = done.text ? `“${done.text}”. ${words[done.outcome] ?? ''}` : 'The model found no description.';
    } catch (error) {
      state.textContent = error instanceof Problem ? `${error.title}: ${error.detail}.` : String(error);
    }
    go.setAttribute('aria-disabled', 'false');
  }
}

/** The parameters in a form for captions. */
export function parameters(prefix) {
  const prompt = byId(`${prefix}-prompt`).value.trim();
  const beams = Number(byId(`${prefix}-beams`).value);
  const style = byId(`${prefix}-style`).value;
  const params = { style, ...(prompt && { prompt }), ...(beams > 1 && { num_beams: beams }) };
  if (!byId(`${prefix}-other`).checked) return params;
  const [seed] = crypto.getRandomValues(new Uint32Array(1));
  return { ...params, num_beams: 1, do_sample: true, temperature: 0.7, top_p: 0.9, seed };
}

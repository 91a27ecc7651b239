// One photo of the gallery's grid.

import { button, h } from './dom.js';
import { nameOf, textOf, thumbnail } from './library.js';
import { marked } from './query.js';

export const FIELDS = { caption: 'caption', alt_text: 'alternative text', tags: 'tags' };

/** The text as people read it: tags are lines. */
export const shown = (field, text) => (field === 'tags' ? text.split('\n').join(', ') : text);

/** The colours of a photo as a background, instead of a missing picture. */
export function stripes(photo) {
  let at = 0;
  const colors = (photo.colors ?? []).filter(({ hex }) => /^#[0-9a-f]{6}$/i.test(hex));
  const total = colors.reduce((sum, { percent }) => sum + percent, 0);
  if (!total) return 'none';
  const stops = colors.map(({ hex, percent }) => {
    const from = at;
    at += (100 * percent) / total;
    return `${hex} ${from}% ${at}%`;
  });
  return `linear-gradient(90deg, ${stops})`;
}

/** A place in the grid. It shows one photo after another, because elements are expensive. */
export class Cell {
  index = -1;
  photo;
  #field;
  #placed = {};
  #picture = h('img', { alt: '', decoding: 'async', draggable: 'false' });
  #label = h('span', { class: 'unseen' });
  #text = h('span', { class: 'text' });
  #meta = h('p', { class: 'meta' });
  #suggested = h('p', { class: 'suggested' });
  #accept;
  #reject;
  #decide;
  #actions;
  #selected = false;

  /** @param actions handle `open`, `edit`, `decide` and `pick` of this cell, and `focused`. */
  constructor(actions) {
    this.#actions = actions;
    this.open = h('button', { type: 'button', class: 'picture', tabindex: '-1', 'aria-describedby': 'keys' },
      this.#picture, this.#label);
    this.words = h('button', { type: 'button', class: 'words', tabindex: '-1' },
      this.#text, h('span', { class: 'unseen', text: ': edit' }));
    this.pick = h('input', { type: 'checkbox', class: 'pick', tabindex: '-1' });
    this.#accept = button('Accept', ' the suggestion', { tabindex: '-1' });
    this.#reject = button('Reject', ' the suggestion', { tabindex: '-1' });
    this.#decide = h('div', { class: 'decide' }, this.#accept, this.#reject);
    this.element = h('li', { class: 'cell' }, this.open, this.pick, this.#decide, this.words, this.#suggested, this.#meta);
    this.open.addEventListener('click', () => actions.open(this));
    this.words.addEventListener('click', () => actions.edit(this));
    this.pick.addEventListener('click', (event) => actions.pick(this, event.shiftKey));
    this.#accept.addEventListener('click', () => actions.decide(this, 'accept'));
    this.#reject.addEventListener('click', () => actions.decide(this, 'reject'));
    this.#picture.addEventListener('error', () => this.#picture.removeAttribute('src'));
    this.element.addEventListener('focusin', () => actions.focused(this));
  }

  /** Puts the cell at a place, in pixels. What has not changed is left alone, because this is done for each frame. */
  place(index, { left, top, width, height, total, reached }) {
    this.index = index;
    const { style } = this.element;
    this.#set('transform', `translate(${left}px, ${top}px)`, (value) => (style.transform = value));
    this.#set('width', `${width}px`, (value) => (style.width = value));
    this.#set('height', `${height}px`, (value) => (style.height = value));
    this.#set('index', String(index + 1), (value) => this.element.setAttribute('aria-posinset', value));
    this.#set('total', String(total), (value) => this.element.setAttribute('aria-setsize', value));
    this.#set('reached', reached ? '0' : '-1', (value) => this.open.setAttribute('tabindex', value));
  }

  #set(name, value, write) {
    if (this.#placed[name] === value) return;
    this.#placed[name] = value;
    write(value);
  }

  /** Shows a photo, or that it is on its way. */
  show(photo, field, selected) {
    // The browser has changed it already, unless somebody chose a range.
    if (this.pick.checked !== selected) this.pick.checked = selected;
    if (this.photo === photo && this.#field === field && this.#selected === selected) return;
    this.#selected = selected;
    this.element.toggleAttribute('data-selected', selected);
    this.pick.hidden = !photo;
    const other = this.photo?.hash !== photo?.hash || this.photo?.has_thumbnail !== photo?.has_thumbnail;
    this.photo = photo;
    this.#field = field;
    this.element.toggleAttribute('data-loading', !photo);
    if (other) this.#paint();
    if (!photo) {
      this.#label.textContent = 'Loading';
      this.#text.textContent = '';
      this.#meta.textContent = '';
      this.#suggested.textContent = '';
      this.#decide.hidden = true;
      return;
    }
    const text = textOf(photo, field);
    const name = nameOf(photo);
    this.#write(text);
    const suggestion = text?.suggestion;
    this.#decide.hidden = !suggestion;
    this.#suggested.textContent = suggestion ? shown(field, suggestion.text) : '';
    this.element.toggleAttribute('data-suggested', Boolean(suggestion));
    this.#meta.replaceChildren(h('span', { class: 'name', text: name }),
      ...(text?.reviewed ? [h('span', { class: 'mark', text: 'reviewed' })] : []));
    const words = text?.text ? shown(field, text.text) : `no ${FIELDS[field]}`;
    const waits = suggestion ? `, suggestion: ${shown(field, suggestion.text)}` : '';
    this.pick.setAttribute('aria-label', `Select ${name}`);
    const states = `${text?.reviewed ? ', reviewed' : ''}${selected ? ', selected' : ''}`;
    this.#label.textContent = `${words}, ${name}${states}${waits}`;
  }

  /** The text, with the words that were searched for. */
  #write(text) {
    const plain = text?.text ? shown(this.#field, text.text) : '';
    this.words.toggleAttribute('data-empty', !plain);
    if (!plain) {
      this.#text.textContent = text?.action === 'clear' ? 'deleted' : `no ${FIELDS[this.#field]}`;
      return;
    }
    const parts = (this.photo.highlights ?? []).map(marked);
    const found = parts.find((one) => one.map((part) => part.text).join('') === plain);
    this.#text.replaceChildren(...(found ?? [{ text: plain }]).map((part) =>
      (part.marked ? h('mark', { text: part.text }) : part.text)));
  }

  async #paint() {
    const { photo } = this;
    this.#picture.removeAttribute('src');
    this.element.style.setProperty('--stripes', photo && !photo.has_thumbnail ? stripes(photo) : 'none');
    if (!photo?.has_thumbnail) return;
    const address = await thumbnail(photo).catch(() => undefined);
    if (address && this.photo?.hash === photo.hash) this.#picture.src = address;
  }
}

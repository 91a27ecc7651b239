// The grid of the gallery. Only what is in the window has elements, however many photos there are.

import { Cell } from './cell.js';

/** Sizes in units of the root font: the least width of a cell, the height of its text, and gaps. */
const LEAST = 11;
const TEXT = 6.25;
const GAP = { row: 1.25, column: 1 };
/** The shape of pictures. */
const SHAPE = 3 / 4;
/** Rows above and below the window that have elements. */
const BEYOND = 2;
/** Photos that are not loaded yet for which the grid has space. */
const AHEAD = 600;

/** A grid of photos, with one place at a time that the Tab key reaches. */
export class Grid {
  active = 0;
  #list;
  #photos;
  #field;
  #selected;
  #actions;
  #cells = new Map();
  #spare = [];
  #layout = { columns: 1, width: 0, height: 1 };
  #asked = false;

  /**
   * @param {HTMLElement} list is the element of the list.
   * @param {function(): object} photos gives the result that is shown, `field` which of its texts, and
   *   `selected` whether a photo is selected.
   */
  constructor(list, { photos, field, selected, ...actions }) {
    this.#list = list;
    this.#photos = photos;
    this.#field = field;
    this.#selected = selected;
    this.#actions = {
      ...actions,
      focused: (cell) => this.#activate(cell.index),
    };
    addEventListener('scroll', () => this.draw(), { passive: true });
    new ResizeObserver(() => {
      this.#measure();
      this.draw();
    }).observe(list);
    this.#measure();
    list.addEventListener('keydown', (event) => this.#key(event));
  }

  /** Draws soon, once for any number of calls. */
  draw() {
    if (this.#asked) return;
    this.#asked = true;
    requestAnimationFrame(() => {
      this.#asked = false;
      this.#draw();
    });
  }

  /** Begins at the top, for another search. */
  restart() {
    this.active = 0;
    this.#draw();
  }

  /** The cell of a photo, if it has one. */
  cell(index) {
    return this.#cells.get(index);
  }

  /** Moves the focus to a photo, and the window to it. */
  focus(index = this.active) {
    const { items } = this.#photos();
    if (!items.length) return;
    this.#activate(Math.max(0, Math.min(index, items.length - 1)));
    const { columns, height } = this.#layout;
    const frame = this.#list.getBoundingClientRect();
    const top = frame.top + Math.floor(this.active / columns) * height;
    if (top < 8) scrollBy({ top: top - 8, behavior: 'instant' });
    else if (top + height > innerHeight) scrollBy({ top: top + height - innerHeight, behavior: 'instant' });
    this.#draw();
    this.cell(this.active)?.open.focus({ preventScroll: true });
  }

  #activate(index) {
    if (index === this.active) return;
    this.active = index;
    this.draw();
  }

  #measure() {
    const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
    const gap = GAP.column * rem;
    const space = this.#list.clientWidth;
    const columns = Math.max(2, Math.floor((space + gap) / (LEAST * rem + gap)));
    const width = (space - gap * (columns - 1)) / columns;
    const below = GAP.row * rem;
    const height = width * SHAPE + TEXT * rem + below;
    this.#layout = { columns, width, height, gap, below };
  }

  #draw() {
    const { items, open, total } = this.#photos();
    const { columns, width, height, gap, below } = this.#layout;
    const known = Math.max(items.length, total ?? 0);
    const count = open ? Math.min(known, items.length + AHEAD) : items.length;
    this.#list.style.height = `${Math.ceil(count / columns) * height}px`;
    const top = this.#list.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(-top / height) - BEYOND) * columns;
    const last = Math.min(count, (Math.ceil((innerHeight - top) / height) + BEYOND) * columns);
    const wanted = new Set();
    for (let index = first; index < last; index += 1) wanted.add(index);
    // The cell with the focus stays, wherever the window is.
    if (this.active < count) wanted.add(this.active);
    for (const [index, cell] of this.#cells) {
      if (wanted.has(index)) continue;
      this.#cells.delete(index);
      this.#spare.push(cell);
    }
    const fresh = document.createDocumentFragment();
    for (const index of wanted) {
      let cell = this.#cells.get(index);
      if (!cell) {
        cell = this.#spare.pop() ?? new Cell(this.#actions);
        this.#cells.set(index, cell);
        if (!cell.element.isConnected) fresh.append(cell.element);
      }
      const [row, column] = [Math.floor(index / columns), index % columns];
      const [left, top] = [column * (width + gap), row * height];
      cell.place(index, { left, top, width, height: height - below, total: known, reached: index === this.active });
      cell.show(items[index], this.#field(), Boolean(items[index]) && this.#selected(items[index].hash));
    }
    for (const cell of this.#spare.splice(0)) cell.element.remove();
    this.#list.append(fresh);
    if (open && last + 2 * columns >= items.length) this.#actions.more();
  }

  #key(event) {
    const { columns } = this.#layout;
    if (event.target.closest('textarea') || event.altKey || event.ctrlKey || event.metaKey) return;
    const rows = Math.max(1, Math.floor(innerHeight / this.#layout.height));
    const steps = {
      ArrowLeft: -1,
      ArrowRight: 1,
      ArrowUp: -columns,
      ArrowDown: columns,
      PageUp: -rows * columns,
      PageDown: rows * columns,
      Home: -Infinity,
      End: Infinity,
    };
    const step = steps[event.key];
    const cell = this.cell(this.active);
    if (step !== undefined) {
      const target = this.active + step;
      const most = this.#photos().items.length - 1;
      // At the edge, a step of a row stays in its column.
      if (Math.abs(step) === columns && (target < 0 || target > most)) return event.preventDefault();
      const [from, to] = [this.active, Math.max(0, Math.min(target, most))];
      this.focus(to);
      if (event.shiftKey) this.#actions.extend(to, from);
    } else if (event.key === 'Escape') {
      this.#actions.drop();
    } else if (!cell?.photo || !event.target.closest('.picture')) {
      return;
    } else if (event.key === 'Enter') {
      this.#actions.edit(cell);
    } else if (event.key === 'x' || event.key === 'X') {
      this.#actions.pick(cell, event.shiftKey);
    } else if (event.key === 'a' || event.key === 'r') {
      this.#actions.decide(cell, event.key === 'a' ? 'accept' : 'reject');
    } else {
      return;
    }
    event.preventDefault();
  }
}

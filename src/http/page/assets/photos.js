// The photos that a search found, page by page.

import { find } from './library.js';

/** Photos of a page: few requests, each answered within a blink. */
const PAGE = 120;

/** The result of a search. It grows as more of it is needed. */
export class Photos {
  items = [];
  total;
  exact = true;
  sort;
  #query;
  #next;
  #controller = new AbortController();
  #loading;
  #changed;
  #failed;

  /** @param {{changed: function(), failed: function(Error)}} listeners hear of pages and of failures. */
  constructor({ changed, failed }) {
    this.#changed = changed;
    this.#failed = failed;
  }

  /** Whether a page is on its way. */
  get busy() {
    return this.#loading !== undefined;
  }

  /** Whether the end of the result is not reached. */
  get open() {
    return this.#next !== undefined || this.#loading !== undefined;
  }

  /**
   * Starts another search, and cancels what is left of the one before. The photos stay until it is answered.
   * Resolves to whether it was.
   */
  search(query) {
    this.#controller.abort();
    this.#controller = new AbortController();
    this.#query = query;
    this.#next = undefined;
    return this.#load({ count: true }, (page) => {
      this.items = page.items;
      this.total = page.total?.count;
      this.exact = page.total?.exact ?? false;
      this.sort = page.sort;
    });
  }

  /** Loads the next page, if there is one and none is on its way. */
  more() {
    if (this.#next === undefined || this.#loading) return this.#loading;
    return this.#load({ cursor: this.#next }, (page) => this.items.push(...page.items));
  }

  /** Puts another version of a photo in its place. */
  replace(photo) {
    const index = this.items.findIndex(({ hash }) => hash === photo.hash);
    if (index >= 0) this.items[index] = { ...photo, highlights: this.items[index].highlights };
    return index;
  }

  async #load(more, take) {
    const controller = this.#controller;
    const loading = find({ ...this.#query, limit: PAGE, ...more }, controller.signal);
    this.#loading = loading;
    try {
      const page = await loading;
      if (controller !== this.#controller) return false;
      this.#next = page.next;
      this.#loading = undefined;
      take(page);
      this.#changed();
      return true;
    } catch (error) {
      if (controller !== this.#controller || error.name === 'AbortError') return false;
      this.#loading = undefined;
      this.#failed(error);
      return false;
    }
  }
}

// Photos that are chosen one by one, to change them together.

/** Photos at most: a request names each of them. */
const MOST = 10_000;

/** The chosen photos, by their hashes. */
export class Selection {
  #hashes = new Set();
  /** Where a range begins: the photo that was chosen last by itself. */
  #anchor;
  #changed;

  /** @param {function()} changed hears of every change. */
  constructor(changed) {
    this.#changed = changed;
  }

  get size() {
    return this.#hashes.size;
  }

  /** The hashes, in the order in which they were chosen. */
  get hashes() {
    return [...this.#hashes];
  }

  has(hash) {
    return this.#hashes.has(hash);
  }

  /** Whether there is room for no more. */
  get full() {
    return this.#hashes.size >= MOST;
  }

  /** Chooses the photo with this index among `items`, or no longer. */
  toggle(items, index) {
    const hash = items[index]?.hash;
    if (hash === undefined) return;
    this.#anchor = index;
    if (!this.#hashes.delete(hash)) this.#add(hash);
    this.#changed();
  }

  /** Chooses all from the photo that was chosen last by itself, or from `start` if there is none, to `index`. */
  extend(items, index, start = index) {
    this.#anchor ??= start;
    const [first, last] = [Math.min(this.#anchor, index), Math.max(this.#anchor, index)];
    for (const { hash } of items.slice(first, last + 1)) this.#add(hash);
    this.#changed();
  }

  clear() {
    this.#anchor = undefined;
    if (this.#hashes.size === 0) return;
    this.#hashes.clear();
    this.#changed();
  }

  #add(hash) {
    if (!this.full) this.#hashes.add(hash);
  }
}

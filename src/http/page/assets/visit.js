// The results of this visit. They survive a reload and are deleted with the tab.

const PREFIX = 'cutline.result.';
/** Longer side of a thumbnail, in pixels. */
const THUMB = 144;

/** The results, oldest first: as in the answer of a batch, with time and parameters added. */
export class Visit {
  #entries = [];
  #next = 0;

  constructor() {
    try {
      const keys = Object.keys(sessionStorage).filter((key) => key.startsWith(PREFIX));
      const numbers = keys.map((key) => Number(key.slice(PREFIX.length))).sort((a, b) => a - b);
      for (const number of numbers) {
        this.#entries.push({ number, ...JSON.parse(sessionStorage.getItem(PREFIX + number)) });
      }
      this.#next = (numbers.at(-1) ?? -1) + 1;
    } catch {
      // Without storage, or with unexpected contents in it, the visit starts empty.
    }
  }

  get entries() {
    return this.#entries;
  }

  get results() {
    return this.#entries.map((entry) => entry.result);
  }

  add(result, thumb) {
    const entry = { number: this.#next++, result, thumb };
    this.#entries.push(entry);
    this.#store(entry);
    return entry;
  }

  clear() {
    for (const { number } of this.#entries) this.#forget(number);
    this.#entries = [];
  }

  /** When the storage is full, the oldest results are removed from it; they stay in memory. */
  #store({ number, result, thumb }) {
    for (const { number: oldest } of this.#entries) {
      try {
        sessionStorage.setItem(PREFIX + number, JSON.stringify({ result, thumb }));
        return;
      } catch {
        this.#forget(oldest);
      }
    }
  }

  #forget(number) {
    try {
      sessionStorage.removeItem(PREFIX + number);
    } catch {
      // Storage is forbidden, so there is nothing to remove.
    }
  }
}

/** A small copy of a displayed picture as a data: URL; undefined if there is no picture. */
export function thumbnail(picture) {
  if (!picture?.naturalWidth) return undefined;
  const scale = Math.min(1, THUMB / Math.max(picture.naturalWidth, picture.naturalHeight));
  const canvas = document.createElement('canvas');
  canvas.width = Math.max(1, Math.round(picture.naturalWidth * scale));
  canvas.height = Math.max(1, Math.round(picture.naturalHeight * scale));
  const context = canvas.getContext('2d');
  context.fillStyle = '#fff';
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL('image/jpeg', 0.72);
}

// What was captioned in this visit. It outlives a reload, not the tab.

const PREFIX = 'cutline.result.';
/** Longer side of a thumbnail, in pixels. */
const THUMB = 144;

/** The results of this visit, the oldest first: as in a batch's answer, with time and parameters. */
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
      // Without storage, or with something else in it, the visit begins now.
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

  /** When the storage is full, the oldest go from it; in memory they stay. */
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
      // Nothing is stored where nothing may be.
    }
  }
}

/** A small copy of a picture that is shown, as a data: address; undefined if there is nothing. */
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

// Small helpers for the document.

/**
 * Creates an element. Properties that begin with `on` are listeners, `text` is the text content, the
 * others are attributes; true sets an attribute without a value, false and undefined omit it.
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === false) continue;
    if (name === 'text') element.textContent = value;
    else if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.filter((child) => child !== undefined && child !== null));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Announces `text` to screen readers. */
export function announce(text) {
  const live = byId('live');
  // Screen readers announce only changes, so the same text needs a difference.
  live.textContent = live.textContent === text ? `${text}\u00a0` : text;
}

/** Copies `text` to the clipboard; over plain HTTP from another host only the old API works. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = h('textarea', { class: 'unseen', 'aria-hidden': 'true' });
    field.value = text;
    const back = document.activeElement;
    document.body.append(field);
    field.select();
    const copied = document.execCommand('copy');
    field.remove();
    back?.focus();
    return copied;
  }
}

/** A button whose label has a second part for screen readers only. */
export const button = (label, of, properties = {}) =>
  h('button', { type: 'button', ...properties }, h('span', { text: label }), h('span', { class: 'unseen', text: of }));

/** A button that copies the result of `text()` and confirms it in its label for a while. */
export function copyButton(label, of, text, properties) {
  const made = button(label, of, properties);
  let timer;
  made.addEventListener('click', async () => {
    const copied = await copy(text());
    announce(copied ? `Copied: ${text().slice(0, 200)}` : 'Copy failed');
    made.firstChild.textContent = copied ? 'Copied' : 'Failed';
    clearTimeout(timer);
    timer = setTimeout(() => (made.firstChild.textContent = label), 1500);
  });
  return made;
}

/** Saves `text` as a file. */
export function save(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h('a', { href: url, download: name }).click();
  // Once the download has started, it no longer needs the URL.
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** 45 ms, 1.2 s */
export const duration = (ms) =>
  ms === 0 ? '0 ms' : ms < 1 ? '< 1 ms' : ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;

/** 70 KB, 1.2 MB */
export const size = (bytes) =>
  bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} KB` : `${(bytes / 1e6).toFixed(1)} MB`;

/** 1 photo, 2 photos */
export const count = (n, one, many = `${one}s`) => `${n} ${n === 1 ? one : many}`;

// Small helpers over the document.

/**
 * An element. Properties that begin with `on` are listeners, `class`, `text` and `data-*` are what
 * they say, true and false switch attributes, and what is undefined is left out.
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

/** Says `text` to screen readers. */
export function announce(text) {
  const live = byId('live');
  // The same text twice would not be a change.
  live.textContent = live.textContent === text ? `${text}\u00a0` : text;
}

/** Puts `text` on the clipboard; on plain HTTP from another machine browsers know the old way only. */
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

/** A button whose label only screen readers hear to the end. */
export const button = (label, of, properties = {}) =>
  h('button', { type: 'button', ...properties }, h('span', { text: label }), h('span', { class: 'unseen', text: of }));

/** A button that copies what `text()` gives, and says so in its own place for a while. */
export function copyButton(label, of, text, properties) {
  const made = button(label, of, properties);
  let timer;
  made.addEventListener('click', async () => {
    const copied = await copy(text());
    announce(copied ? `Copied: ${text().slice(0, 200)}` : 'Copying failed');
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
  // The download has its own hold on the blob once it has begun.
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

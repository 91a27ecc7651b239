// The library's part of the server's HTTP interface.

import { ask, key } from './api.js';

const ROOT = 'library';

async function read(path, signal) {
  return (await ask(`${ROOT}/${path}`, { headers: { accept: 'application/json' }, signal })).json();
}

async function send(method, path, body, headers = {}) {
  const init = { method, headers: { 'content-type': 'application/json', ...headers }, body: JSON.stringify(body) };
  const response = await ask(`${ROOT}/${path}`, init);
  return response.status === 204 ? undefined : response.json();
}

function query(values) {
  const given = Object.entries(values).filter(([, value]) => value !== undefined && value !== '' && value !== false);
  return new URLSearchParams(given.map(([name, value]) => [name, String(value)])).toString();
}

export const find = (values, signal) => read(`assets?${query(values)}`, signal);
export const facets = (q, signal) => read(`facets?${query({ q })}`, signal);
export const asset = (hash, signal) => read(`assets/${hash}`, signal);
export const history = (hash, signal) => read(`assets/${hash}/history`, signal);
export const similar = (hash, limit, signal) => read(`assets/${hash}/similar?${query({ limit })}`, signal);
export const runs = () => read('runs');
export const jobs = () => read('jobs');

/** Changes a text. The version is the one that was read: a photo that somebody changed since is not changed. */
export const edit = (photo, field, action) =>
  send('PATCH', `assets/${photo.hash}/texts/${field}`, action, { 'if-match': `"${photo.version}"` });

export const rate = (hash, field, good, reason = '') => send('POST', 'feedback', { hash, field, good, reason });
/** `which` has either `q`, a search, or `photos`, hashes. */
export const bulk = (which, change, dryRun) => send('POST', 'bulk', { ...which, change, dry_run: dryRun });
export const undo = (run) => send('POST', `runs/${run}/undo`, {});
export const regenerate = (hash, params) => send('POST', `assets/${hash}/regenerate`, params);
export const regenerateAll = (which, params, dryRun) =>
  send('POST', 'regenerate', { ...which, dry_run: dryRun, ...params });
export const cancel = (run) => send('POST', `jobs/${run}/cancel`, {});

/** The text of a photo in English. */
export const textOf = (photo, field) => photo.texts.find((text) => text.field === field && text.lang === 'en');

/** The name to show: the last part of the name that it was last seen with. */
export function nameOf(photo) {
  const name = photo.names[0]?.name;
  return name?.split(/[/\\]/).filter(Boolean).pop() ?? `photo ${photo.hash.slice(0, 8)}`;
}

// Thumbnails

/** Thumbnails that are kept in memory, for servers with keys. */
const KEPT = 600;
const kept = new Map();

/**
 * The address of a thumbnail. An image element cannot send a key, so that with one the file is fetched here.
 * Undefined if there is none.
 */
export async function thumbnail(photo, signal) {
  if (!photo.has_thumbnail) return undefined;
  const path = `${ROOT}/assets/${photo.hash}/thumbnail`;
  if (!key.get()) return path;
  const known = kept.get(photo.hash);
  if (known) {
    kept.delete(photo.hash);
    kept.set(photo.hash, known);
    return known;
  }
  const address = URL.createObjectURL(await (await ask(path, { signal })).blob());
  kept.set(photo.hash, address);
  for (const [hash, oldest] of kept) {
    if (kept.size <= KEPT) break;
    kept.delete(hash);
    URL.revokeObjectURL(oldest);
  }
  return address;
}

// The parts of the server's HTTP interface that this page uses.

const KEY = 'cutline.key';

/** An error, from the server (RFC 9457) or from this page. */
export class Problem extends Error {
  constructor({ status = 0, code, title, detail, field, request_id: requestId }, retryAfter) {
    super(detail);
    Object.assign(this, { status, code, title, detail, field, requestId, retryAfter });
  }

  /** Whether to retry automatically a little later. */
  get passing() {
    return this.status === 429 || this.status === 503;
  }

  /** Whether the API key is missing or wrong. */
  get locked() {
    return this.status === 401 || this.status === 403;
  }

  toJSON() {
    const { status, code, title, detail, field, requestId: request_id } = this;
    return { status, code, title, detail, field, request_id };
  }
}

/** The API key, which is stored until the tab is closed. */
export const key = {
  get: () => fromStorage(() => sessionStorage.getItem(KEY)),
  set: (value) => fromStorage(() => sessionStorage.setItem(KEY, value)),
};

function fromStorage(use) {
  try {
    return use() ?? '';
  } catch {
    // Browsers may forbid storage.
    return '';
  }
}

/** Sends a request with the key. Only answers that are good come back. @throws {Problem} */
export async function ask(path, init = {}) {
  const secret = key.get();
  const headers = { ...init.headers, ...(secret && { authorization: `Bearer ${secret}` }) };
  let response;
  try {
    response = await fetch(path, { ...init, headers });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Problem({
      code: 'unreachable',
      title: 'The server cannot be reached',
      detail: 'the connection failed; check that the server is running, and try again',
    });
  }
  if (!response.ok) throw await problem(response);
  return response;
}

async function problem(response) {
  const after = retryAfter(response.headers.get('retry-after'), Date.now());
  const answer = await response.json().catch(() => ({}));
  const title = answer.title ?? `The server answered ${response.status}`;
  const detail = answer.detail ?? 'no reason was given';
  return new Problem({ code: 'http_error', ...answer, status: response.status, title, detail }, after);
}

/** Seconds from a `Retry-After`, which holds seconds or a date; undefined without one. */
export function retryAfter(value, now) {
  if (!value) return undefined;
  const seconds = /^\d+$/.test(value.trim()) ? Number(value) : (Date.parse(value) - now) / 1000;
  return Number.isFinite(seconds) ? Math.max(0, seconds) : undefined;
}

/** The model's description. */
export async function modelInfo() {
  const headers = { accept: 'application/json' };
  return (await ask('model/info', { headers })).json();
}

/**
 * The caption of a file. `onText` receives the text so far each time it grows.
 *
 * @throws {Problem}
 */
export async function caption(file, params, { signal, onText }) {
  const body = new FormData();
  for (const [name, value] of Object.entries(params)) body.append(name, String(value));
  body.append('stream', 'true');
  // The image comes last, so that the server has read all parameters before it.
  body.append('image', file, file.name);
  let response;
  try {
    response = await ask('caption/generate', { method: 'POST', body, signal });
  } catch (error) {
    throw error.code === 'unreachable' && (await unreadable(file)) || error;
  }
  try {
    for await (const { event, data } of events(response.body)) {
      if (event === 'token') onText(JSON.parse(data).text);
      else if (event === 'done') return JSON.parse(data);
      else if (event === 'error') throw new Problem(JSON.parse(data));
    }
  } catch (error) {
    if (error instanceof Problem || error.name === 'AbortError') throw error;
  }
  throw new Problem({
    code: 'cut_off',
    title: 'The answer was cut off',
    detail: 'the connection closed before the caption was finished; try again',
  });
}

/** For a file that no longer exists, browsers report only that fetching failed. */
async function unreadable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
    return undefined;
  } catch {
    return new Problem({
      code: 'unreadable_file',
      title: 'The file cannot be read',
      detail: 'it was moved or changed after you chose it, or it is a folder; choose it again',
    });
  }
}

/** The server-sent events in a stream of bytes. */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  let event = 'message';
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split('\n');
      rest = lines.pop();
      for (const line of lines.map((line) => line.replace(/\r$/, ''))) {
        const [, name, text] = line.match(/^([^:]*):? ?(.*)$/s);
        if (name === 'event') event = text;
        else if (name === 'data') data.push(text);
        else if (line === '' && data.length) {
          yield { event, data: data.join('\n') };
          event = 'message';
          data = [];
        }
      }
    }
  } finally {
    // If the reader stops early, the connection is closed.
    reader.cancel().catch(() => {});
  }
}

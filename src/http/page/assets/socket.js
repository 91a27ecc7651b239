// Captions over a WebSocket: many at a time on one connection, where fetch would need one for each.

import { Problem, key } from './api.js';

const PROTOCOL = 'cutline.v1';

export class Socket {
  #address;
  #changed;
  #socket;
  #requests = new Map();
  #made = 0;
  /** The key with which connecting failed: with the same key it is not tried again. */
  #refused;

  constructor(address, changed = () => {}) {
    this.#address = address;
    this.#changed = changed;
  }

  get open() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  /**
   * The caption of a file; undefined if there is no connection, or it broke. `onText` receives the text so
   * far each time it grows.
   *
   * @throws {Problem}
   */
  async caption(file, params, { signal, onText }) {
    const socket = await this.#connect();
    if (!socket) return undefined;
    // A file that cannot be read would break the connection; fetch reports it.
    const bytes = await file.arrayBuffer().catch(() => undefined);
    signal.throwIfAborted();
    if (!bytes || socket.readyState !== WebSocket.OPEN) return undefined;
    const id = String((this.#made += 1));
    const cancel = () => {
      socket.send(JSON.stringify({ type: 'cancel', id }));
      this.#requests.get(id)?.reject(signal.reason);
    };
    signal.addEventListener('abort', cancel);
    try {
      return await new Promise((resolve, reject) => {
        this.#requests.set(id, { resolve, reject, onText });
        socket.send(new Blob([`${JSON.stringify({ type: 'caption', id, ...params })}\n`, bytes]));
      });
    } finally {
      signal.removeEventListener('abort', cancel);
      this.#requests.delete(id);
    }
  }

  /** The open connection; undefined if there is none. */
  async #connect() {
    const secret = key.get();
    if (this.#refused === secret) return undefined;
    if (!this.#socket) {
      const protocols = secret ? [PROTOCOL, keyProtocol(secret)] : [PROTOCOL];
      this.#socket = new WebSocket(this.#address, protocols);
      this.#listen(this.#socket, secret);
    }
    const socket = this.#socket;
    if (socket.readyState === WebSocket.CONNECTING) {
      await new Promise((resolve) => {
        for (const event of ['open', 'close']) socket.addEventListener(event, resolve, { once: true });
      });
    }
    return socket.readyState === WebSocket.OPEN ? socket : undefined;
  }

  #listen(socket, secret) {
    let opened = false;
    socket.addEventListener('open', () => {
      opened = true;
      this.#changed();
    });
    socket.addEventListener('message', ({ data }) => this.#receive(JSON.parse(data)));
    socket.addEventListener('close', () => {
      // Behind a proxy that knows no WebSockets, or with a wrong key, for which fetch says so.
      if (!opened) this.#refused = secret;
      if (this.#socket === socket) this.#socket = undefined;
      // The server may not have seen them; fetch asks again.
      for (const { resolve } of this.#requests.values()) resolve(undefined);
      this.#changed();
    });
  }

  #receive(event) {
    const request = this.#requests.get(event.id);
    if (event.type === 'token') request?.onText(event.text);
    else if (event.type === 'done') request?.resolve(event.result);
    else if (event.type === 'error') request?.reject(new Problem(event.error, event.retry_after));
  }
}

/** The key as a subprotocol, in base64url: a page can set no header of a WebSocket. */
function keyProtocol(secret) {
  const bytes = String.fromCharCode(...new TextEncoder().encode(secret));
  const text = btoa(bytes).replaceAll('+', '-').replaceAll('/', '_').replace(/=+$/, '');
  return `cutline.key.${text}`;
}

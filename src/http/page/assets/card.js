// One photo with its caption and the details of both.

import { button, copyButton, duration, h, size } from './dom.js';

/** Milliseconds between two words that arrive together, so that they appear one after the other. */
const BEAT = 45;

let made = 0;

export class Card {
  #address;
  #picture;
  #frame = h('div', { class: 'frame' });
  #colors = h('div', { class: 'colors', role: 'group', 'aria-label': 'Colours; select one to copy its code' });
  #caption = h('figcaption', { class: 'cutline' });
  #state = h('p', { class: 'state' });
  #credit = h('ul', { class: 'credit' });
  #actions = h('div', { class: 'row actions' });
  #more = h('details', { class: 'more' });
  #summary;
  #known = h('div');
  #answer;
  #copy;
  #again;
  #retry;
  #lastWord = 0;

  /** @param {{again: function(Card), retry: function(Card)}} actions handle the buttons. */
  constructor(file, actions) {
    this.file = file;
    this.name = file.name || 'pasted photo';
    const title = `photo-${++made}`;
    this.#address = URL.createObjectURL(file);
    this.#picture = h('img', { src: this.#address, alt: this.name, decoding: 'async' });
    this.#picture.addEventListener('error', () => this.#replacePicture());
    this.#frame.append(this.#picture);
    const of = ` for ${this.name}`;
    this.#again = button('Regenerate', of, { onclick: () => this.busy || actions.again(this) });
    this.#copy = copyButton('Copy as alt text', of, () => this.#answer.caption);
    this.#retry = button('Try again', of, { onclick: () => actions.retry(this) });
    this.#summary = h('summary', {}, 'Details', h('span', { class: 'unseen', text: of }));
    this.element = h(
      'article',
      { class: 'print', 'aria-labelledby': title, tabindex: '-1' },
      h('h2', { class: 'unseen', id: title, text: this.name }),
      h('figure', {}, this.#frame, this.#colors, this.#caption),
      this.#state,
      this.#credit,
      this.#actions,
      this.#more,
    );
    this.queued();
  }

  get busy() {
    return this.element.dataset.state === 'busy';
  }

  /** The image element, once it is decoded; undefined if the browser cannot decode it. */
  async picture() {
    await this.#picture.decode().catch(() => {});
    return this.#picture.naturalWidth ? this.#picture : undefined;
  }

  queued() {
    this.#is('busy', 'Waiting in the queue');
  }

  waiting(seconds) {
    const rounded = Math.max(1, Math.ceil(seconds));
    this.#is('busy', `The server is busy. Retrying in ${rounded} s`);
  }

  locked() {
    this.#is('busy', 'Waiting for the API key');
  }

  begin(params) {
    this.params = params;
    this.#is('busy', params.num_beams > 1 ? `Searching with ${params.num_beams} beams` : 'Captioning');
    this.#caption.replaceChildren();
    this.#lastWord = 0;
  }

  /** Shows the caption so far; unchanged words keep their elements. */
  write(text) {
    this.#state.textContent = '';
    const words = text.split(' ');
    words.forEach((word, index) => {
      const there = this.#caption.children[index];
      if (there) {
        if (there.textContent !== word) there.textContent = word;
        return;
      }
      const now = performance.now();
      this.#lastWord = Math.max(now, this.#lastWord + BEAT);
      const span = h('span', { class: 'word', text: word });
      span.style.animationDelay = `${this.#lastWord - now}ms`;
      this.#caption.append(index ? ' ' : '', span);
    });
    while (this.#caption.children.length > words.length) this.#caption.lastElementChild.remove();
  }

  finish(answer, curl) {
    const first = !this.#copy.isConnected;
    this.#answer = answer;
    this.write(answer.caption);
    this.#is('done');
    const { image, mood, timings } = answer;
    const facts = [
      this.name,
      `${image.width} × ${image.height} ${image.format.toUpperCase()}, ${size(image.size_bytes)}`,
      mood?.label,
      answer.cache === 'hit' ? `cached, ${duration(timings.total_ms)}` : duration(timings.total_ms),
    ];
    this.#credit.replaceChildren(...facts.filter(Boolean).map((text) => h('li', { text })));
    // Colours do not change, and a button that is inserted again loses the focus.
    if (first) {
      this.#paint(answer.colors ?? []);
      this.#actions.replaceChildren(this.#copy, this.#again);
      this.#more.replaceChildren(this.#summary, this.#known);
    }
    this.#details(answer, curl);
  }

  fail(problem) {
    this.#caption.replaceChildren();
    const traces = [problem.code, problem.requestId && `request ${problem.requestId}`].filter(Boolean);
    this.#ended(
      h('strong', { text: problem.title }),
      h('span', { class: 'sentence', text: `${problem.detail}.` }),
      h('span', { class: 'trace', text: traces.join(' · ') }),
    );
    this.element.dataset.state = 'failed';
  }

  stopped() {
    this.#caption.replaceChildren();
    this.#ended('Stopped before the caption was finished.');
    this.element.dataset.state = 'stopped';
  }

  remove() {
    URL.revokeObjectURL(this.#address);
    this.element.remove();
  }

  #ended(...message) {
    const here = this.element.contains(document.activeElement);
    this.#is('failed');
    this.#state.replaceChildren(...message);
    this.#credit.replaceChildren(h('li', { text: this.name }));
    this.#actions.replaceChildren(this.#retry);
    this.#more.replaceChildren();
    if (here) this.element.focus();
  }

  #is(state, text = '') {
    // A button that is removed loses the focus; the card keeps the reader's place.
    if (state === 'busy' && document.activeElement === this.#retry) this.element.focus();
    if (state === 'busy') this.#retry.remove();
    this.element.dataset.state = state;
    this.element.setAttribute('aria-busy', String(state === 'busy'));
    this.#again.setAttribute('aria-disabled', String(state === 'busy'));
    this.#state.replaceChildren(text);
  }

  /** Replaces a picture that the browser cannot display. */
  #replacePicture() {
    const text = 'This browser cannot display this photo';
    this.#frame.replaceChildren(h('div', { class: 'no-picture' }, h('p', { text })));
  }

  #paint(colors) {
    this.#colors.replaceChildren(...colors.map(swatch));
    if (colors.length === 0) return;
    // Shown instead of a missing picture.
    let at = 0;
    const total = colors.reduce((sum, { fraction }) => sum + fraction, 0);
    const stops = colors.map(({ hex, fraction }) => {
      const from = at;
      at += (100 * fraction) / total;
      return `${hex} ${from}% ${at}%`;
    });
    this.#frame.style.setProperty('--stripes', `linear-gradient(90deg, ${stops})`);
  }

  #details(answer, curl) {
    const { mood, timings, captions } = answer;
    const parts = { decode: timings.decode_ms, queue: timings.queue_ms, model: timings.inference_ms };
    const json = JSON.stringify(answer, null, 2);
    const reading = this.#known.contains(document.activeElement);
    this.#known.replaceChildren(
      h('div', { class: 'tables' },
        table('Time', [
          ...Object.entries(parts).map(([name, ms]) => [name, duration(ms), ms / timings.total_ms]),
          ['total', duration(timings.total_ms)],
        ]),
        mood && table(`Mood: ${mood.label}`, Object.entries(mood).filter(([, v]) => typeof v === 'number')
          .map(([name, value]) => [name, value.toFixed(2), value])),
        table('Caption', [
          ['confidence', captions[0].confidence.toFixed(2), captions[0].confidence],
          ['tokens', String(captions[0].tokens)],
          ['cache', answer.cache],
        ]),
      ),
      block('curl command', curl, this.name),
      block('JSON', json, this.name),
    );
    if (reading) this.#summary.focus();
  }
}

/** A button that copies a colour's code; as wide as the colour's share of the photo. */
function swatch({ hex, name, fraction }) {
  const share = `${Math.round(fraction * 100)} %`;
  const made = copyButton(hex, ` ${name}, ${share}`, () => hex, { class: 'swatch', title: `${name}, ${share}` });
  made.style.setProperty('--color', hex);
  made.style.setProperty('--ink', luminance(hex) > 0.179 ? '#000' : '#fff');
  made.style.flexGrow = String(fraction);
  return made;
}

/** Relative luminance as in WCAG; at 0.179 black and white text have the same contrast. */
function luminance(hex) {
  const [r, g, b] = [1, 3, 5].map((at) => {
    const c = parseInt(hex.slice(at, at + 2), 16) / 255;
    return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function table(title, rows) {
  const list = h('dl');
  for (const [name, text, part] of rows) {
    const value = h('dd', { text });
    if (part !== undefined) {
      value.classList.add('part');
      value.style.setProperty('--part', String(Math.min(1, Math.max(0, part))));
    }
    list.append(h('div', {}, h('dt', { text: name }), value));
  }
  return h('section', {}, h('h3', { text: title }), list);
}

function block(title, text, name) {
  return h('section', { class: 'block' },
    h('div', { class: 'block-head' },
      h('h3', { text: title }),
      copyButton('Copy', ` ${title} for ${name}`, () => text)),
    // Scrollable areas must be reachable with the keyboard.
    h('pre', { tabindex: '0', role: 'group', 'aria-label': `${title} for ${name}` }, h('code', { text })));
}

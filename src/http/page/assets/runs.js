// Runs and jobs: what changed many photos, how far it is, and how to take it back.

import { author, when } from './detail.js';
import { announce, button, byId, count, h } from './dom.js';
import * as library from './library.js';

/** Milliseconds between two looks at jobs that are at work. */
const LOOK = 1000;

const KINDS = {
  bulk: 'Changed many photos',
  import: 'Import',
  caption: 'Captions from the command line',
  regenerate: 'Captioned again',
  undo: 'Taken back',
};
const STATES = { waiting: 'waits', running: 'at work', done: 'done', cancelled: 'cancelled', failed: 'ended early' };

/** The dialog of runs. */
export class Runs {
  #dialog = byId('runs');
  #timer;
  #actions;
  #working = false;

  /** @param actions `changed()` hears that texts changed, `failed(error)` of errors. */
  constructor(actions) {
    this.#actions = actions;
    byId('runs-close').addEventListener('click', () => this.#dialog.close());
    this.#dialog.addEventListener('close', () => {
      clearTimeout(this.#timer);
      byId('show-runs').focus();
    });
    byId('show-runs').addEventListener('click', () => this.show());
  }

  show() {
    if (!this.#dialog.open) {
      this.#dialog.showModal();
      byId('runs-title').focus();
    }
    this.#look();
  }

  async #look() {
    clearTimeout(this.#timer);
    try {
      const [runs, jobs] = await Promise.all([library.runs(), library.jobs()]);
      if (this.#dialog.open) this.#list(runs, new Map(jobs.map((job) => [job.run, job])));
      const working = jobs.some(({ state }) => state === 'running' || state === 'waiting');
      if (this.#working && !working) {
        announce('Done');
        this.#actions.changed();
      }
      this.#working = working;
      if (working && this.#dialog.open) this.#timer = setTimeout(() => this.#look(), LOOK);
    } catch (error) {
      this.#actions.failed(error);
    }
  }

  #list(runs, jobs) {
    const focused = document.activeElement?.dataset?.run;
    byId('runs-none').hidden = runs.length > 0;
    byId('runs-list').replaceChildren(...runs.map((run) => this.#run(run, jobs.get(run.id))));
    if (focused) byId('runs-list').querySelector(`[data-run="${focused}"]`)?.focus();
  }

  #run(run, job) {
    const title = h('p', {}, h('strong', { text: KINDS[run.kind] ?? run.kind }), ` ${describe(run)}`);
    const facts = [`run ${run.id}`, author(run.author), when(run.started_at), count(run.revisions, 'text')];
    const item = h('li', {}, title, h('p', { class: 'help', text: facts.join(', ') }));
    const busy = job && (job.state === 'running' || job.state === 'waiting');
    if (job) {
      const { total, done, written, suggested, unchanged, unavailable, failed } = job;
      const parts = [
        `${STATES[job.state]}: ${done} of ${count(total, 'photo')}`,
        `${written} written`,
        suggested ? `${suggested} suggested` : '',
        unchanged ? `${unchanged} unchanged` : '',
        unavailable ? `${unavailable} without a file` : '',
        failed ? `${failed} failed` : '',
      ];
      item.append(
        h('progress', { max: String(Math.max(1, total)), value: String(done), 'aria-label': `Run ${run.id}` }),
        h('p', { class: 'help', text: parts.filter(Boolean).join(', ') }),
      );
      if (job.problem) item.append(h('p', { class: 'problem', text: `${job.problem}.` }));
    }
    const of = ` run ${run.id}`;
    if (busy) {
      item.append(button('Cancel', of, { 'data-run': String(run.id), onclick: () => this.#act(() => library.cancel(run.id)) }));
    } else if (run.revisions > 0 && run.kind !== 'undo') {
      item.append(button('Undo', of, { 'data-run': String(run.id), onclick: () => this.#undo(run.id) }));
    }
    return item;
  }

  async #undo(run) {
    await this.#act(async () => {
      const { changed, matched } = await library.undo(run);
      announce(`Undone: ${changed} of ${matched}`);
      this.#actions.changed();
    });
  }

  async #act(work) {
    try {
      await work();
    } catch (error) {
      this.#actions.failed(error);
    }
    this.#look();
  }
}

/** What a run did, from its parameters. */
function describe({ parameters }) {
  let given;
  try {
    given = JSON.parse(parameters);
  } catch {
    return parameters;
  }
  if (typeof given !== 'object' || given === null) return String(given);
  return Object.entries(given)
    .filter(([, value]) => value !== null && value !== '')
    .map(([name, value]) => `${name.replaceAll('_', ' ')} ${typeof value === 'object' ? JSON.stringify(value) : value}`)
    .join(', ');
}

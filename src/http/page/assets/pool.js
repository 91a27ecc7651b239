// Runs a limited number of tasks at a time, and waits when the server asks for it.

/** Attempts at one task that the server defers. */
const TRIES = 12;
/** Seconds to wait when the server does not say how long. */
const PAUSE = 2;
const LONGEST_PAUSE = 60;

/**
 * Runs tasks in order. A task has `run(signal)`, which throws problems, and callbacks:
 * `waiting(seconds)` when it is deferred, `locked(problem)` when a key is missing, and
 * `failed(problem)` or `stopped()` when it ends without success.
 */
export class Pool {
  #limit;
  #changed;
  #queue = [];
  #running = new Map();
  #resumeAt = 0;
  #held = false;
  #timer;

  /** @param {function(): number} limit says how many tasks may run at a time. */
  constructor(limit, changed = () => {}) {
    this.#limit = limit;
    this.#changed = changed;
  }

  get open() {
    return this.#queue.length + this.#running.size;
  }

  add(task) {
    this.#queue.push({ task, tries: 0 });
    this.#pump();
  }

  /** Continues with the first task in the queue once there is a key. */
  release() {
    this.#held = false;
    this.#pump();
  }

  /** Starts more tasks if the limit has grown. */
  resume() {
    this.#pump();
  }

  /** Cancels everything that is not done. */
  stop() {
    for (const { task } of this.#queue.splice(0)) task.stopped();
    for (const controller of this.#running.values()) controller.abort();
    this.#resumeAt = 0;
    this.#held = false;
    this.#changed();
  }

  #pump() {
    clearTimeout(this.#timer);
    const wait = this.#resumeAt - Date.now();
    if (wait > 0) {
      this.#timer = setTimeout(() => this.#pump(), wait);
      return;
    }
    while (!this.#held && this.#queue.length && this.#running.size < this.#limit()) {
      this.#start(this.#queue.shift());
    }
  }

  async #start(entry) {
    const controller = new AbortController();
    this.#running.set(entry, controller);
    try {
      await entry.task.run(controller.signal);
    } catch (problem) {
      this.#ended(entry, problem);
    }
    this.#running.delete(entry);
    this.#changed();
    this.#pump();
  }

  #ended(entry, problem) {
    const { task } = entry;
    if (problem.name === 'AbortError') {
      task.stopped();
    } else if (problem.locked) {
      this.#held = true;
      this.#queue.unshift(entry);
      task.locked(problem);
    } else if (problem.passing && ++entry.tries < TRIES) {
      const seconds = Math.min(problem.retryAfter ?? PAUSE, LONGEST_PAUSE);
      // The other tasks wait as well: the queue is full for all of them.
      this.#resumeAt = Math.max(this.#resumeAt, Date.now() + seconds * 1000);
      this.#queue.unshift(entry);
      task.waiting(seconds, problem);
    } else {
      task.failed(problem);
    }
  }
}

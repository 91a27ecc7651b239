// Work of which only so much is under way at a time, and which waits when the server says so.

/** Tries of one piece of work that the server put off. */
const TRIES = 12;
/** Seconds, where the server does not say how long. */
const PAUSE = 2;
const LONGEST_PAUSE = 60;

/**
 * Runs tasks in order. A task has `run(signal)`, which throws problems, and is told by
 * `waiting(seconds)` that it was put off, by `locked(problem)` that a key is missing, by
 * `failed(problem)` and by `stopped()` how it ended.
 */
export class Pool {
  #limit;
  #changed;
  #queue = [];
  #running = new Map();
  #resumeAt = 0;
  #held = false;
  #timer;

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

  /** Goes on after a missing key, with the first in line. */
  release() {
    this.#held = false;
    this.#pump();
  }

  /** Takes back everything that is not done. */
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
    while (!this.#held && this.#queue.length && this.#running.size < this.#limit) {
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
      // Nobody else is sent on the way either: the queue is full for all of them.
      this.#resumeAt = Math.max(this.#resumeAt, Date.now() + seconds * 1000);
      this.#queue.unshift(entry);
      task.waiting(seconds, problem);
    } else {
      task.failed(problem);
    }
  }
}

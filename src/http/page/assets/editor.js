// Editing a text where it stands: Enter saves, Escape cancels.

import { Problem } from './api.js';
import { announce, button, h } from './dom.js';
import { diff } from './diff.js';
import * as library from './library.js';
import { FIELDS, shown } from './cell.js';

let made = 0;

/** The words of two texts that differ, as elements. */
export function differences(before, after) {
  const words = { same: 'span', removed: 'del', added: 'ins' };
  const parts = diff(before, after);
  return h('p', { class: 'diff' }, ...parts.flatMap(({ kind, text }, n) => [n ? ' ' : '', h(words[kind], { text })]));
}

/** What an edited text does to the photo; undefined if it changes nothing. */
function action(field, text, before) {
  const tags = () => text.split(/[\n,;]/).map((tag) => tag.trim()).filter(Boolean).join('\n');
  const plain = field === 'tags' ? tags() : text.trim();
  if (plain === before) return undefined;
  return plain ? { action: 'write', text: plain } : { action: 'clear' };
}

/**
 * Puts an editor of a photo's text into `place`. Resolves to the photo as it is now, or to undefined if it was
 * cancelled or nothing was changed.
 */
export function edit(place, photo, field) {
  const before = library.textOf(photo, field)?.text ?? '';
  const id = `editor-${++made}`;
  const input = h('textarea', {
    id, spellcheck: 'true', 'aria-describedby': `${id}-why`,
  });
  input.rows = field === 'tags' ? 4 : 3;
  input.value = shown(field, before);
  const problem = h('p', { class: 'problem', role: 'alert', id: `${id}-why` });
  const save = h('button', { class: 'strong' }, 'Save');
  const cancel = h('button', { type: 'button' }, 'Cancel');
  const form = h('form', { class: 'editor' },
    h('label', { class: 'unseen', for: id, text: `${FIELDS[field]} of ${library.nameOf(photo)}` }),
    input, problem, h('div', { class: 'row' }, save, cancel));
  place.append(form);
  input.focus();
  input.select();
  return new Promise((resolve) => {
    let busy = false;
    const end = (result) => {
      form.remove();
      resolve(result);
    };
    const submit = async () => {
      const wanted = action(field, input.value, before);
      if (!wanted) return end(undefined);
      if (busy) return undefined;
      busy = true;
      problem.textContent = '';
      try {
        const now = await change(photo, field, wanted);
        if (now) {
          announce(wanted.action === 'clear' ? 'Deleted' : 'Saved');
          return end(now);
        }
      } catch (error) {
        problem.textContent = error instanceof Problem ? `${error.title}: ${error.detail}.` : String(error);
      }
      busy = false;
      return input.focus();
    };
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      submit();
    });
    cancel.addEventListener('click', () => end(undefined));
    form.addEventListener('keydown', (event) => {
      event.stopPropagation();
      if (event.isComposing) return;
      if (event.key === 'Escape') {
        event.preventDefault();
        end(undefined);
      } else if (event.key === 'Enter' && !event.shiftKey && event.target === input) {
        event.preventDefault();
        submit();
      }
    });
  });
}

/**
 * Changes a text, and returns the photo as it is now. If somebody has changed it meanwhile, asks what to do;
 * undefined means to go on editing.
 */
export async function change(photo, field, wanted) {
  try {
    await library.edit(photo, field, wanted);
  } catch (error) {
    if (error.status !== 412) throw error;
    const now = await library.asset(photo.hash);
    const answer = await conflict(photo, now, field, wanted);
    if (answer === 'theirs') return now;
    return answer === 'mine' ? change(now, field, wanted) : undefined;
  }
  return library.asset(photo.hash);
}

/** Shows both texts. Resolves to `mine`, `theirs` or undefined. */
function conflict(photo, now, field, wanted) {
  const theirs = shown(field, library.textOf(now, field)?.text ?? '');
  const mine = wanted.text === undefined ? undefined : shown(field, wanted.text);
  const title = `conflict-${++made}`;
  const keep = h('button', { type: 'button', class: 'strong' }, mine === undefined ? 'Do it all the same' : 'Keep mine');
  const take = h('button', { type: 'button' }, 'Take theirs');
  const back = h('button', { type: 'button' }, 'Back');
  const dialog = h('dialog', { class: 'box', 'aria-labelledby': title },
    h('h2', { id: title, text: 'Changed meanwhile' }),
    h('p', { text: `Somebody has changed ${library.nameOf(photo)} since you read it.` }),
    h('h3', { text: `The ${FIELDS[field]} now` }),
    h('p', { class: 'quote', text: theirs || 'none' }),
    ...(mine === undefined ? [] : [h('h3', { text: 'Yours, compared with it' }), differences(theirs, mine)]),
    h('div', { class: 'row' }, keep, take, back));
  document.body.append(dialog);
  return new Promise((resolve) => {
    let answer;
    const close = (given) => () => {
      answer = given;
      dialog.close();
    };
    keep.addEventListener('click', close('mine'));
    take.addEventListener('click', close('theirs'));
    back.addEventListener('click', close(undefined));
    dialog.addEventListener('close', () => {
      dialog.remove();
      resolve(answer);
    });
    dialog.showModal();
    keep.focus();
  });
}

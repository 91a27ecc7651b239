// Which words of two texts differ. Uses no document.

/** Longer texts are compared as a whole. */
const MOST = 400;

/**
 * The parts of both texts in order: `{ kind: 'same' | 'removed' | 'added', text }`. Words in a row that have
 * the same kind are one part.
 */
export function diff(before, after) {
  const [from, to] = [words(before), words(after)];
  const parts = [];
  const add = (kind, word) => {
    const last = parts.at(-1);
    if (last?.kind === kind) last.text += ` ${word}`;
    else parts.push({ kind, text: word });
  };
  if (from.length > MOST || to.length > MOST) {
    from.forEach((word) => add('removed', word));
    to.forEach((word) => add('added', word));
    return parts;
  }
  const common = lengths(from, to);
  let [i, j] = [0, 0];
  while (i < from.length || j < to.length) {
    if (i < from.length && j < to.length && from[i] === to[j]) {
      add('same', from[i]);
      i += 1;
      j += 1;
    } else if (i < from.length && (j === to.length || common[i + 1][j] >= common[i][j + 1])) {
      add('removed', from[i++]);
    } else {
      add('added', to[j++]);
    }
  }
  return parts;
}

const words = (text) => text.split(/\s+/).filter(Boolean);

/** How many words the rests of both lists have in common, in order. */
function lengths(from, to) {
  const table = Array.from({ length: from.length + 1 }, () => new Uint16Array(to.length + 1));
  for (let i = from.length - 1; i >= 0; i -= 1) {
    for (let j = to.length - 1; j >= 0; j -= 1) {
      table[i][j] = from[i] === to[j] ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
    }
  }
  return table;
}

// Searches as text, and the filters in them. Uses no document.

/** Groups of filters, with the kinds of facets that they are made of. */
export const GROUPS = [
  { title: 'Decisions', kinds: ['is', 'missing'] },
  { title: 'Colours', kinds: ['color'] },
  { title: 'Moods', kinds: ['mood'] },
  { title: 'Tags', kinds: ['tag'] },
  { title: 'Models', kinds: ['model'] },
];

const LABELS = {
  'is:suggested': 'suggestion waits',
  'is:reviewed': 'reviewed',
  'is:unreviewed': 'not reviewed',
  'is:cleared': 'deleted text',
  'missing:caption': 'no caption',
  'missing:alt_text': 'no alternative text',
  'missing:tags': 'no tags',
};

/** A filter as it is written in a search. */
export function token(kind, value) {
  // A quotation mark cannot be written within others.
  const plain = value.replaceAll('"', ' ').trim();
  return /^[^\s"]+$/.test(plain) ? `${kind}:${plain}` : `${kind}:"${plain}"`;
}

/** A filter as people read it. */
export const label = (kind, value) => LABELS[`${kind}:${value}`] ?? value;

/** The filters and the words, as one search. The words come last, because the last one may be unfinished. */
export const compose = (words, filters) => [...filters, words.trimStart()].filter(Boolean).join(' ');

/** The same search with its last word marked as the beginning of one, as it is while somebody types. */
export const finished = (q) => (/(^|\s)-?[^\s":]*[\p{L}\p{N}]$/u.test(q) ? `${q}*` : q.trimEnd());

/** Facets as groups of filters: `{ title, exact, filters: [{ token, label, kind, value, count }] }`. */
export function groups(facets, chosen, total) {
  return GROUPS.map(({ title, kinds }) => {
    const found = facets.filter(({ attribute }) => kinds.includes(attribute));
    const filters = found.flatMap(({ attribute, values }) =>
      values.map(({ value, count }) => ({ kind: attribute, value, count })));
    const reviewed = filters.find(({ kind, value }) => kind === 'is' && value === 'reviewed');
    if (kinds.includes('is') && total !== undefined) {
      const count = total - (reviewed?.count ?? 0);
      if (count > 0) filters.unshift({ kind: 'is', value: 'unreviewed', count });
    }
    const all = filters.map((filter) => ({
      ...filter,
      token: token(filter.kind, filter.value),
      label: label(filter.kind, filter.value),
    }));
    // A filter that finds nothing more can still be switched off.
    const gone = chosen
      .filter((one) => kinds.includes(one.split(':')[0]) && !all.some((filter) => filter.token === one))
      .map((one) => {
        const [kind, ...rest] = one.split(':');
        const value = rest.join(':').replaceAll('"', '');
        return { kind, value, count: 0, token: one, label: label(kind, value) };
      });
    return { title, exact: found.every(({ exact }) => exact), filters: [...gone, ...all] };
  }).filter(({ filters }) => filters.length > 0);
}

/** A highlight as parts: `{ text, marked }`. The words that were found are between U+E000 and U+E001. */
export function marked(highlight) {
  return highlight.split(/(\ue000[^\ue001]*\ue001)/).filter(Boolean).map((part) => ({
    text: part.replace(/[\ue000\ue001]/g, ''),
    marked: part.startsWith('\ue000'),
  }));
}

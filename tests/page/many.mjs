// node many.mjs COUNT: writes made-up photos for `cutline library import`, as JSON Lines.

const count = Number(process.argv[2]);
const SUBJECTS = ['a dog', 'two cats', 'a woman', 'a man with a hat', 'children', 'a red bus', 'an old boat', 'a bowl of fruit'];
const DEEDS = ['on a beach', 'in front of a house', 'next to a river', 'under a tree', 'in the snow', 'at night', 'on a table'];
const COLORS = [['#d2b48c', 'tan'], ['#4682b4', 'steelblue'], ['#2f4f4f', 'darkslategray'], ['#b22222', 'firebrick'], ['#f5f5dc', 'beige']];
const MOODS = ['calm', 'energetic', 'serene', 'tense'];

const pick = (list, n) => list[n % list.length];

for (let n = 0; n < count; n += 1) {
  const text = (field, text) => ({ field, lang: 'en', text, reviewed: false, confidence: (n % 100) / 100, author: { kind: 'model', name: 'made-up' } });
  const [hex, name] = pick(COLORS, n);
  const row = {
    hash: (n + 1).toString(16).padStart(64, '0'),
    names: [{ kind: 'path', name: `/photos/${n % 40}/IMG_${String(n).padStart(5, '0')}.jpg` }],
    format: 'jpeg',
    width: 4000,
    height: 3000,
    taken_at: 1.4e12 + n * 3.6e6,
    colors: [{ hex, name, percent: 60 }, { hex: '#808080', name: 'gray', percent: 40 }],
    mood: pick(MOODS, n),
    texts: [text('caption', `${pick(SUBJECTS, n)} ${pick(DEEDS, n >> 3)}`), text('tags', `made up\n${pick(SUBJECTS, n)}`)],
  };
  console.log(JSON.stringify(row));
}

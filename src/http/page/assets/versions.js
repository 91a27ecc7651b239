// What the columns of the playground ask for. Uses no document.

/** What a column can be. */
export const KINDS = [
  ['saved', 'a saved version'],
  ['prefix', 'words that the caption continues'],
  [`style`, 'a style'],
  ['chain', 'a text made of the caption'],
];

export const STYLES = ['caption', 'alt_text', 'engaging', 'title', 'keywords'];

/** The most photos and columns. */
export const MOST_PHOTOS = 20;
export const MOST_VERSIONS = 4;

/** The content of a version as the server saves it; undefined for one that is saved already. */
export function content({ kind, template, style, emoji }) {
  if (kind === 'saved') return undefined;
  if (kind === `style`) return { kind, style, emoji: Boolean(emoji && style === 'engaging') };
  return { kind, template };
}

/** The variables of a column. @throws {SyntaxError|TypeError} if they are no object */
export function variables(text) {
  if (!text.trim()) return {};
  const value = JSON.parse(text);
  if (value === null || typeof value !== 'object' || Array.isArray(value)) throw new TypeError('not an object');
  return value;
}

/** A name for the column in the table. */
export const title = (version, number) =>
  version.kind === 'saved' && version.reference ? version.reference : `Version ${'ABCD'[number]}`;

/**
 * The text for a photo: `caption(params)` asks for a caption, `render(body)` for the text of a template.
 */
export async function text(version, { caption, render }) {
  const given = variables(version.variables ?? '');
  if (version.kind === 'saved') {
    const params = { template: version.reference };
    if (Object.keys(given).length) params.variables = JSON.stringify(given);
    return caption(params);
  }
  const said = content(version);
  if (version.kind === `style`) {
    return caption(said.emoji ? { style: said.style, emoji: true } : { style: said.style });
  }
  if (version.kind === 'prefix') return caption({ prompt: await render({ content: said, variables: given }) });
  return render({ content: said, variables: given, caption: await caption({}) });
}

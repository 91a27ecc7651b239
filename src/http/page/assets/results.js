// Exports: CSV, JSON, and the equivalent curl command. Uses no document.

const COLUMNS = [
  ['name', (r) => r.name],
  ['status', (r) => r.status],
  ['caption', (r) => r.caption],
  ['confidence', (r) => r.captions?.[0].confidence],
  ['prompt', (r) => r.parameters?.prompt],
  ['num_beams', (r) => r.parameters?.num_beams ?? 1],
  ['seed', (r) => r.parameters?.seed],
  ['model', (r) => r.model],
  ['format', (r) => r.image?.format],
  ['width', (r) => r.image?.width],
  ['height', (r) => r.image?.height],
  ['size_bytes', (r) => r.image?.size_bytes],
  ['hash', (r) => r.image?.hash],
  ['colors', (r) => r.colors?.map((color) => color.hex).join(' ')],
  ['mood', (r) => r.mood?.label],
  ['valence', (r) => r.mood?.valence],
  ['energy', (r) => r.mood?.energy],
  ['warmth', (r) => r.mood?.warmth],
  ['cache', (r) => r.cache],
  ['total_ms', (r) => r.timings?.total_ms],
  ['time', (r) => r.time],
  ['error_code', (r) => r.error?.code],
  ['error_detail', (r) => r.error?.detail],
];

/** CSV as in RFC 4180, with the byte order mark by which spreadsheets recognise UTF-8. */
export function toCsv(results) {
  const rows = [COLUMNS.map(([name]) => name)];
  for (const result of results) rows.push(COLUMNS.map(([, read]) => cell(read(result))));
  return `\ufeff${rows.map((row) => `${row.join(',')}\r\n`).join('')}`;
}

function cell(value) {
  let text = value === undefined || value === null ? '' : String(value);
  // A spreadsheet would run text that starts like this as a formula, and file names are untrusted. The
  // command line does the same in `spreadsheet.rs`. Apostrophes count, so that the guard can be undone.
  if (typeof value === 'string' && /^'*[=+\-@\t\r\n＝＋－＠]/.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** The same format as an answer of `/caption/batch`. */
export function toJson(results) {
  const ok = results.filter((result) => result.status === 'ok').length;
  const summary = { total: results.length, ok, failed: results.length - ok };
  return `${JSON.stringify({ results: results.map((r, index) => ({ index, ...r })), summary }, null, 2)}\n`;
}

/** The equivalent curl command. It names the variable of the key, not the key. */
export function toCurl(url, name, params, withKey) {
  const lines = ['curl'];
  if (withKey) lines[0] += ' -H "Authorization: Bearer $API_KEY"';
  // In quotes, curl takes a name literally, including commas and semicolons.
  const plain = /^[\w./ -]+$/.test(name);
  const path = plain ? name : `"${name.replace(/[\\"]/g, '\\$&')}"`;
  lines.push(`-F ${quote(`image=@${path}`)}`);
  for (const [field, value] of Object.entries(params)) {
    // With -F, a prompt that starts with @ or < would be read as a file.
    lines.push(`${field === 'prompt' ? '--form-string' : '-F'} ${quote(`${field}=${value}`)}`);
  }
  lines.push(quote(url));
  return lines.join(lines.length > 4 ? ' \\\n  ' : ' ');
}

function quote(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

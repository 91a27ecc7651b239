// Takes photos that are chosen, dropped or pasted.

/**
 * Calls `take` with an array of files.
 *
 * @param {HTMLElement} zone is marked while files hover over the page.
 */
export function listen(zone, input, take) {
  input.addEventListener('change', () => {
    take([...input.files]);
    // So that the same file can be chosen again.
    input.value = '';
  });

  // The whole page takes drops: otherwise a drop outside the zone makes the browser leave the page.
  let depth = 0;
  const hover = (change) => (event) => {
    if (!event.dataTransfer?.types.includes('Files')) return;
    event.preventDefault();
    depth = Math.max(0, depth + change);
    zone.toggleAttribute('data-over', depth > 0);
  };
  window.addEventListener('dragenter', hover(1));
  window.addEventListener('dragleave', hover(-1));
  window.addEventListener('dragover', hover(0));
  window.addEventListener('drop', async (event) => {
    if (!event.dataTransfer?.types.includes('Files')) return;
    event.preventDefault();
    depth = 0;
    zone.removeAttribute('data-over');
    take(await dropped(event.dataTransfer));
  });

  window.addEventListener('paste', (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length === 0) return;
    event.preventDefault();
    take(files);
  });
}

async function dropped(transfer) {
  // Read all entries before the first await: the browser clears the list afterwards.
  const items = [...transfer.items].filter((item) => item.kind === 'file');
  const found = items.map((item) => [item.webkitGetAsEntry?.(), item.getAsFile()]);
  const lists = found.map(([entry, file]) => (entry?.isDirectory ? walk(entry) : file ? [file] : []));
  return (await Promise.all(lists)).flat();
}

/** The images in a folder and its subfolders, sorted by name. */
async function walk(folder) {
  const reader = folder.createReader();
  const entries = [];
  for (;;) {
    // `readEntries` returns at most a hundred entries per call.
    const some = await new Promise((resolve) => reader.readEntries(resolve, () => resolve([])));
    if (some.length === 0) break;
    entries.push(...some);
  }
  entries.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
  const lists = entries.map(async (entry) => {
    if (entry.isDirectory) return walk(entry);
    const file = await new Promise((resolve) => entry.file(resolve, () => resolve(null)));
    return file?.type.startsWith('image/') ? [file] : [];
  });
  return (await Promise.all(lists)).flat();
}

// The command line of the inspector of the Model Context Protocol.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { env } from 'node:process';
import { test } from 'node:test';
import { promisify } from 'node:util';

import { CAPTION, IMAGE, PHOTO, PHOTOS } from './support.mjs';

const run = promisify(execFile);

/** What the inspector prints for a server, which is a command or an address. */
async function inspect(server, ...options) {
  const { stdout } = await run('mcp-inspector', ['--cli', ...server, ...options], { timeout: 50_000 });
  return JSON.parse(stdout);
}

const servers = { stdio: [env.CUTLINE, 'mcp', PHOTOS], http: [`${env.CUTLINE_URL}/mcp`] };
const image = { stdio: `path=${PHOTO}`, http: `image=${IMAGE.toString('base64')}` };

for (const [name, server] of Object.entries(servers)) {
  test(`${name}: the schemas of the tools are portable`, async () => {
    // It fails if a schema has an error.
    const { tools } = await inspect(server, '--method', 'tools/list', '--strict');
    assert.ok(tools.some((tool) => tool.name === 'caption_image'));
  });

  test(`${name}: a caption`, async () => {
    const call = ['--method', 'tools/call', '--tool-name', 'caption_image', '--tool-arg', image[name]];
    const result = await inspect(server, ...call);
    assert.ok(!result.isError);
    assert.equal(result.structuredContent.caption, CAPTION);
  });
}

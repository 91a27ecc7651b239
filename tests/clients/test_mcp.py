"""The Python SDK of the Model Context Protocol, over stdio and over HTTP, in both eras of the protocol."""

import asyncio
import json
import os
import re
import subprocess
import traceback
from pathlib import Path

import httpx2
import pytest
from conftest import BASE64, DATA_URI, KEY, KEYED, PHOTO, PHOTOS, SMALL, URL
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

STDIO = StdioServerParameters(
    command=os.environ["CUTLINE"], args=["mcp", str(PHOTOS)], env={"PATH": os.environ["PATH"]}
)
HTTP = f"{URL}/mcp"
ERAS = {"legacy": "2025-11-25", "auto": "2026-07-28"}

every_server = pytest.mark.parametrize("server", [STDIO, HTTP], ids=["stdio", "http"])
every_era = pytest.mark.parametrize("mode", ERAS)


def with_client(server, work, mode="auto"):
    async def run():
        async with Client(server, mode=mode, read_timeout_seconds=30) as client:
            return await work(client)

    return asyncio.run(run())


def call(server, tool, mode="auto", **arguments):
    return with_client(server, lambda client: client.call_tool(tool, arguments), mode)


def text(result):
    return "\n".join(block.text for block in result.content)


@every_era
@every_server
def test_tools_are_listed(server, mode):
    async def list_tools(client):
        assert client.protocol_version == ERAS[mode]
        assert client.server_info.name == "cutline"
        return await client.list_tools()

    tools = {tool.name: tool for tool in with_client(server, list_tools, mode).tools}
    assert {"caption_image", "alt_text", "tag_image"} <= set(tools)
    for tool in tools.values():
        assert tool.description and tool.output_schema
        assert tool.annotations.read_only_hint


@every_era
@every_server
def test_a_caption(server, mode, caption):
    for image in [BASE64, DATA_URI]:
        result = call(server, "caption_image", mode, image=image)
        assert not result.is_error
        assert result.structured_content["caption"] == caption
        assert caption in text(result)


@every_server
def test_alternative_text_and_tags(server, alt_text):
    assert alt_text in text(call(server, "alt_text", image=BASE64))
    assert "cat" in text(call(server, "tag_image", image=BASE64))


@pytest.mark.parametrize("path", ["cat.jpg", str(PHOTO)], ids=["relative", "absolute"])
def test_a_file_in_the_folder(path, caption):
    assert call(STDIO, "caption_image", path=path).structured_content["caption"] == caption


@pytest.mark.parametrize("path", ["../Cargo.toml", "/etc/passwd", "nothing.jpg", "README.md"])
def test_other_files_are_refused(path):
    result = call(STDIO, "caption_image", path=path)
    assert result.is_error and text(result)
    assert "root:" not in text(result)


@every_server
def test_failures_are_results_with_a_sentence(server):
    result = call(server, "caption_image", image="aGVsbG8=")
    assert result.is_error and "not a supported image" in text(result)
    result = call(server, "caption_image")
    assert result.is_error and "image" in text(result)


def test_files_are_not_read_over_http():
    result = call(HTTP, "caption_image", path=str(PHOTO))
    assert result.is_error


def test_a_full_server(full, caption):
    with pytest.raises(Exception) as caught:
        call(f"{SMALL}/mcp", "caption_image", image=BASE64)
    assert "MAX_INFLIGHT_BYTES" in "".join(traceback.format_exception(caught.value))
    full.release()
    assert call(f"{SMALL}/mcp", "caption_image", image=BASE64).structured_content["caption"] == caption


def test_keys(caption):
    async def keyed(key):
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx2.AsyncClient(headers=headers, timeout=30) as http:
            transport = streamable_http_client(f"{KEYED}/mcp", http_client=http)
            async with Client(transport, read_timeout_seconds=30) as client:
                return await client.call_tool("caption_image", {"image": BASE64})

    assert asyncio.run(keyed(KEY)).structured_content["caption"] == caption
    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(keyed("wrong"))
    assert "API key" in "".join(traceback.format_exception(caught.value))


def test_the_settings_in_the_docs_start_the_server(tmp_path, caption):
    page = Path(__file__).parent.parent.parent / "docs" / "clients" / "mcp.md"
    (settings,) = re.findall(r"^```json\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    path = tmp_path / "settings.json"
    path.write_text(settings.replace("/home/me/Pictures", str(PHOTOS)))
    (tmp_path / "cutline").symlink_to(os.environ["CUTLINE"])
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    call = ["--method", "tools/call", "--tool-name", "caption_image", "--tool-arg", f"path={PHOTO.name}"]
    command = ["mcp-inspector", "--cli", "--config", path, "--server", "cutline", *call]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["structuredContent"]["caption"] == caption

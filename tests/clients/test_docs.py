"""The examples in docs/clients, as they are printed there, but for the address and the photo."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PHOTO, URL

HERE = Path(__file__).parent
PAGES = HERE.parent.parent / "docs" / "clients"
# Those that read the photo are whole programs, and print its caption.
PROGRAM = re.compile(r"^```(python|js|sh|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = {"python": [sys.executable, "-c"], "js": ["node", "--input-type=module", "-e"], "sh": ["bash", "-ec"], "bash": ["bash", "-ec"]}


def programs():
    for page in sorted(PAGES.glob("*.md")):
        for number, (language, text) in enumerate(PROGRAM.findall(page.read_text()), 1):
            if "photo.jpg" in text:
                yield pytest.param(language, text, id=f"{page.stem}-{number}")


@pytest.mark.parametrize(("language", "text"), list(programs()))
def test_an_example_prints_the_caption(language, text, caption):
    text = re.sub(r"(127\.0\.0\.1|localhost):8000", URL.removeprefix("http://"), text)
    text = text.replace("photo.jpg", str(PHOTO))
    done = subprocess.run([*RUN[language], text], capture_output=True, text=True, timeout=50, cwd=HERE)
    assert done.returncode == 0, done.stderr
    assert caption in done.stdout

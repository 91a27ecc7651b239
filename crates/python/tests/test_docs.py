"""docs/python.md."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "python.md").read_text()


def blocks(language: str) -> list[str]:
    return [part.split("```")[0] for part in PAGE.split(f"```{language}\n")[1:]]


def test_the_first_session_prints_what_the_page_says() -> None:
    example = Path(__file__).with_name("example.py")
    assert blocks("python")[0] in example.read_text()
    result = subprocess.run([sys.executable, example], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    # The confidence and the words may differ by machine; the shape of the output may not.
    lines, shown = result.stdout.splitlines(), blocks("text")[0].splitlines()
    assert len(lines) == len(shown)
    assert lines[0] == shown[0]
    assert [line.split(":")[0] for line in lines[1:5]] == [line.split(":")[0] for line in shown[1:5]]
    assert lines[5].startswith("a photo of") and lines[5].endswith(" 451 300")
    assert lines[6:] == shown[6:]


def test_the_other_programs_compile() -> None:
    assert len(blocks("python")) == 4
    for number, block in enumerate(blocks("python")):
        compile(block, f"block {number}", "exec")

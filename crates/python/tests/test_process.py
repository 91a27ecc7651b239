"""Threads, processes, signals and the command line."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import cutline
from cutline import _captioner


def python(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )


def test_the_interpreter_runs_while_the_model_does(
    captioner: cutline.Captioner, photos: list[Path]
) -> None:
    ended = threading.Event()
    turns = 0

    def count() -> None:
        nonlocal turns
        while not ended.wait(0.001):
            turns += 1

    thread = threading.Thread(target=count)
    thread.start()
    begin = time.monotonic()
    captioner.caption(photos * 3, cache="bypass", num_beams=5)
    took = time.monotonic() - begin
    ended.set()
    thread.join()
    # With the lock held there would be none: twenty a second are few.
    assert turns >= 20 * took - 2, f"{turns} turns in {took:.1f} s"


def test_threads_share_one_captioner(captioner: cutline.Captioner, photos: list[Path]) -> None:
    expected = [row["caption"] for row in captioner.caption(photos)]
    with ThreadPoolExecutor(12) as pool:
        # More images at a time than the queue holds.
        results = pool.map(lambda _: captioner.caption(photos * 4, cache="bypass"), range(12))
        for rows in results:
            assert [row["caption"] for row in rows] == expected * 4


def caption_elsewhere(captioner: cutline.Captioner, photo: str) -> tuple[str, int]:
    return captioner.caption(photo)["caption"], os.getpid()


def test_another_process_gets_the_arguments(captioner: cutline.Captioner, cat: Path) -> None:
    assert len(pickle.dumps(captioner)) < 1000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        text, pid = pool.apply(caption_elsewhere, (captioner, str(cat)))
    assert text == captioner.caption(cat)["caption"]
    assert pid != os.getpid()


def test_a_copy_has_the_same_arguments() -> None:
    captioner = cutline.Captioner(precision="f32", batch_size=3)
    copy = pickle.loads(pickle.dumps(captioner))
    assert repr(copy) == repr(captioner)
    assert copy.info["precision"] == "f32"
    assert copy.fingerprint == captioner.fingerprint != cutline.Captioner(precision="bf16").fingerprint


def test_a_forked_process_is_refused_and_ends(cat: Path) -> None:
    code = """
        import os, sys, cutline
        captioner = cutline.Captioner()
        rows = captioner.stream([sys.argv[1]] * 9)
        next(rows)
        child = os.fork()
        if child == 0:
            works = [
                lambda: captioner.caption(sys.argv[1]), lambda: next(rows), lambda: cutline.Captioner()
            ]
            for work in works:
                try:
                    work()
                except cutline.CutlineError as error:
                    print(error.code, error)
            del captioner, rows, works, work
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        print(len(list(rows)), captioner.caption(sys.argv[1])["caption"])
    """
    result = python(code, cat, PYTHONUNBUFFERED="1", PYTHONWARNINGS="ignore")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 4, result.stdout
    for line in lines[:3]:
        assert line.startswith("unsupported this process was forked")
        assert "spawn or forkserver" in line
    assert lines[3] == "8 a cat sitting on top of a table"


def test_a_process_may_fork_before_its_first_captioner(cat: Path) -> None:
    code = """
        import os, sys, cutline
        child = os.fork()
        print(cutline.Captioner().caption(sys.argv[1])["caption"])
        if child:
            sys.exit(os.waitpid(child, 0)[1])
    """
    result = python(code, cat)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["a cat sitting on top of a table"] * 2


def test_ctrl_c_ends_a_long_batch(cat: Path) -> None:
    code = """
        import signal, sys, cutline
        # A shell lets programs in the background ignore it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        captioner = cutline.Captioner()
        print("ready", flush=True)
        try:
            captioner.caption([sys.argv[1]] * 100_000, cache="bypass", num_beams=10)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        print(captioner.caption(sys.argv[1])["caption"])
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(cat)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        try:
            rest, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert rest.splitlines() == ["interrupted", "a cat sitting on top of a table"]
    assert process.returncode == 0


def test_the_threads_are_those_asked_for(cat: Path) -> None:
    code = """
        import cutline
        print(cutline.Captioner(threads=THREADS).info["threads"])
    """
    cases: list[tuple[str, dict[str, str], str]] = [
        ("1", {"OMP_NUM_THREADS": "3"}, "1"),
        ("None", {"OMP_NUM_THREADS": "3,2"}, "3"),
        ("None", {"OMP_NUM_THREADS": "3", "RAYON_NUM_THREADS": "2"}, "2"),
        ("5", {"RAYON_NUM_THREADS": "2"}, "5"),
    ]
    for threads, environment, expected in cases:
        result = python(code.replace("THREADS", threads), **environment)
        assert result.stdout.strip() == expected, result.stderr


def test_variables_of_others_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    for text in ("", "0", "many", "-1", "²"):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert _captioner._threads(None) is None, text


def test_the_environment_does_not_choose_the_model(cat: Path) -> None:
    code = """
        import sys, cutline
        print(cutline.Captioner().info["id"])
    """
    result = python(code, MODEL="./absent", DEVICE="nonsense", PRECISION="nonsense")
    assert result.stdout.strip() == "cutline-small", result.stderr


def test_the_command_line_is_the_program(cat: Path) -> None:
    script = Path(sys.executable).parent / "cutline"
    for command in ([script], [sys.executable, "-m", "cutline"]):
        result = subprocess.run([*command, "caption", cat], capture_output=True, text=True)
        assert result.stdout == f"{cat}\ta cat sitting on top of a table\n"
        assert result.returncode == 0
        version = subprocess.run([*command, "--version"], capture_output=True, text=True)
        assert version.stdout == f"cutline {cutline.__version__}\n"
        wrong = subprocess.run([*command, "caption", "--nonsense"], capture_output=True, text=True)
        assert (wrong.returncode, wrong.stdout) == (2, "")
        absent = subprocess.run([*command, "caption", "absent.jpg"], capture_output=True, text=True)
        assert absent.returncode == 1
        assert "absent.jpg" in absent.stderr


def test_ctrl_c_ends_the_program() -> None:
    command = [sys.executable, "-m", "cutline", "serve", "--port", "0"]
    environment = {**os.environ, "SHUTDOWN_DELAY": "0"}
    with subprocess.Popen(command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode in (0, -signal.SIGINT, 130)

"""Sends Pillow's own test images to a server and to `cutline caption`, and compares what they read of each file
with what Pillow reads."""

import asyncio
import collections
import io
import json
import multiprocessing
import re
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import PIL
from PIL import Image, ImageCms, ImageOps, ImageStat

PAGE = Path(__file__).parent.parent.parent / "docs" / "design" / "pillow-images.md"
# What a server may say about an image, and the exit statuses of `cutline caption`.
REFUSED = {413, 415, 422}
FINISHED = {0, 1}
# Captions are short, because the checks are about reading images.
PARAMETERS = {"max_new_tokens": 4, "cache": "bypass"}
SIDE = 512
ORIENTATION = 0x0112


def fetch(folder):
    """The folder with the images, from the source distribution of the installed version of Pillow."""
    name = f"pillow-{PIL.__version__}"
    images = folder / name / "Tests" / "images"
    if not images.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "pillow"]
        subprocess.run([*command, "--dest", folder, f"pillow=={PIL.__version__}"], check=True)
        with tarfile.open(folder / f"{name}.tar.gz") as archive:
            inside = f"{name}/Tests/images/"
            members = [member for member in archive if member.name.startswith(inside)]
            archive.extractall(folder, members, filter="data")
    return images


def read(path):
    """What Pillow reads of a file: its format, upright size and orientation, and the mean and standard deviation of
    its luma on white, from 0 to 1. They are None if the samples have no agreed range. None if Pillow refuses it."""
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(path) as image:
            # Before the pixels are loaded: a TIFF then forgets it.
            orientation = image.getexif().get(ORIENTATION, 1)
            image.load()
            upright = ImageOps.exif_transpose(image)
            luma = None if image.mode[0] in "IF" else luma_of(upright)
            return {
                "format": image.format,
                "mode": image.mode,
                "size": list(upright.size),
                "orientation": orientation if orientation in range(1, 9) else 1,
                "luma": luma,
            }
    except Exception:
        return None


def luma_of(image):
    profile = image.info.get("icc_profile")
    space = image.mode
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if profile and space in ("RGB", "RGBA", "P"):
        try:
            source = ImageCms.getOpenProfile(io.BytesIO(profile))
            image = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"))
        except ImageCms.PyCMSError:
            pass
    longer = max(image.size)
    if longer > SIDE:
        size = [max(1, side * SIDE // longer) for side in image.size]
        image = image.resize(size, Image.Resampling.BOX)
    stat = ImageStat.Stat(image.convert("L"))
    return [stat.mean[0] / 255, stat.stddev[0] / 255]


class Reader:
    """Pillow in a process of its own, because some of the files were made to end it or to keep it busy."""

    def __init__(self):
        self.pool = multiprocessing.Pool(1)

    def read(self, path):
        try:
            return self.pool.apply_async(read, [path]).get(60)
        except multiprocessing.TimeoutError:
            self.pool.terminate()
            self.pool = multiprocessing.Pool(1)
            return None


async def ask(server, route, path, parameters):
    """Status and JSON. No file may keep the server busy for a minute."""
    url = f"{server.base}{route}"
    kind = {"content-type": "application/octet-stream"}
    async with asyncio.timeout(60):
        async with server.session.post(url, params=parameters, data=path.read_bytes(), headers=kind) as answer:
            return answer.status, json.loads(await answer.read())


async def send(server, paths):
    """Every file to both routes: what /image/process says, and what /caption/generate says."""
    answers = {}
    left = iter(paths)

    async def client():
        for path in left:
            answers[path] = (
                await ask(server, "/image/process", path, {}),
                await ask(server, "/caption/generate", path, PARAMETERS),
            )

    await asyncio.gather(*(client() for _ in range(8)))
    return answers


def caption(load, paths):
    """What `cutline caption` says about each file: a caption, or why there is none."""
    words = ["--max-new-tokens=4", "--format=jsonl", "--json-progress", *load.model]
    command = [load.options.cutline, "caption", *words, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    said = {Path(row["path"]): row["caption"] for row in rows}
    # A panic is not written as JSON.
    lines = [line for line in done.stderr.splitlines() if line.startswith("{")]
    events = [event for event in map(json.loads, lines) if event.get("event") == "failed"]
    failed = {Path(event["path"]): event["detail"] for event in events}
    return done.returncode, said, failed, done.stderr.count("panicked")


def differences(seen, answer):
    """What differs between Pillow's image and that of /image/process."""
    image = answer["image"]
    for what, ours in (("size", [image["width"], image["height"]]), ("orientation", image["orientation"])):
        if ours != seen[what]:
            yield f"{what} {ours}, Pillow {seen[what]}"
    if seen["luma"]:
        ours = [answer["brightness"], answer["contrast"]]
        if any(abs(ours - theirs) > 0.02 for ours, theirs in zip(ours, seen["luma"])):
            yield "brightness and contrast {}, Pillow {}".format(
                *(" ".join(f"{value:.3f}" for value in pair) for pair in (ours, seen["luma"]))
            )


async def run(load):
    images = fetch(load.folder)
    paths = sorted(path for path in images.rglob("*") if path.is_file())
    reader = Reader()
    seen = {path: reader.read(path) for path in paths}
    async with load.server() as server:
        answers = await send(server, paths)
        before = server.memory()
        again = await send(server, paths)
        growth = server.memory() / before - 1
        peak = server.memory("VmHWM:")
        ready = await server.is_ready()
    log = Path(server.log.name).read_text(errors="replace")

    statuses = collections.Counter(status for pair in answers.values() for status, _ in pair)
    wrong = set(statuses) - {200} - REFUSED
    panics = log.count('"message":"panic"')
    number = f"{len(paths)} files, {panics} panics"
    load.say("pillow", number, "only 200, 413, 415, 422; 0 panics", not wrong and not panics and ready, dict(statuses))

    same = [path for path in paths if [a[0] for a in answers[path]] == [a[0] for a in again[path]]]
    agree = [path for path in paths if answers[path][0][0] == answers[path][1][0]]
    number = f"{len(same)} repeated, {len(agree)} on both routes"
    load.say("pillow", number, f"{len(paths)} and {len(paths)}", len(same) == len(agree) == len(paths))

    more = f"{before / 2**20:.0f} MiB after the first pass, peak {peak / 2**20:.0f} MiB"
    load.say("pillow", f"memory {growth:+.1%} in a second pass", "<= +3%", growth <= 0.03, more)

    status, said, failed, panics = caption(load, paths)
    by_http = {path: pair[1][1]["caption"] for path, pair in answers.items() if pair[1][0] == 200}
    number = f"{len(said)} captions, {len(failed)} refused, exit {status}, {panics} panics"
    holds = said == by_http and len(said) + len(failed) == len(paths) and status in FINISHED and not panics
    load.say("pillow", number, "the same captions as over HTTP", holds)

    read_by_both = [path for path in paths if seen[path] and answers[path][0][0] == 200]
    differ = {path: list(differences(seen[path], answers[path][0][1])) for path in read_by_both}
    differ = {path: found for path, found in differ.items() if found}
    names = {str(path.relative_to(images)): found for path, found in differ.items()}
    unexplained = {name: found for name, found in names.items() if name not in EXPLAINED}
    number = f"{len(names)} of {len(read_by_both)} differ from Pillow"
    load.say("pillow", number, "only those explained", not unexplained, unexplained or "")
    write_page(images, paths, seen, answers, names)


# Files that both read, but differently, and why.
EXPLAINED = {
    "avif/xmp_tags_orientation.avif": "the orientation is in XMP only",
    "exif_imagemagick_orientation.png": "the EXIF data is in a text chunk, where ImageMagick once wrote it",
    "mmap_error.bmp": "the offset of the pixels points into the palette, which Pillow corrects",
    "rgb32bf-abgr.bmp": "all alpha values are 0, which cutline takes for no transparency",
    "xmp_tags_orientation.png": "the orientation is in XMP only",
    "xmp_tags_orientation_exiftool.png": "the orientation is in XMP only",
}


def reason(problem):
    """The detail of a refusal, without the numbers of the file."""
    return re.sub(r"\d{2,}(×\d+)?", "N", problem["detail"])


def write_page(images, paths, seen, answers, differ):
    refused = collections.defaultdict(list)
    for path in paths:
        status, body = answers[path][0]
        if seen[path] and status != 200:
            refused[status, reason(body)].append(path)
    only_here = [path for path in paths if not seen[path] and answers[path][0][0] == 200]
    count = collections.Counter((bool(seen[path]), answers[path][0][0] == 200) for path in paths)
    lines = [
        "# Pillow's test images",
        "",
        "Pillow's source distribution has a collection of test images, many of them odd or broken on purpose. "
        "`benches/load/run.sh pillow` sends them all to a server and to `cutline caption`, and writes this page. "
        f"The version is Pillow {PIL.__version__}, whose collection has {len(paths)} files.",
        "",
        "| | cutline reads | cutline refuses |",
        "| --- | ---: | ---: |",
        f"| Pillow reads | {count[True, True]} | {count[True, False]} |",
        f"| Pillow refuses | {count[False, True]} | {count[False, False]} |",
        "",
        "## Read by Pillow, refused by cutline",
        "",
        "| status | reason | files |",
        "| ---: | --- | --- |",
    ]

    def listed(paths):
        return ", ".join(f"`{path.relative_to(images)}`" for path in paths)

    for (status, why), found in sorted(refused.items(), key=lambda group: -len(group[1])):
        formats = collections.Counter(seen[path]["format"] for path in found)
        kinds = ", ".join(f"{number} {kind}" for kind, number in formats.most_common())
        lines.append(f"| {status} | {why} | {kinds}: {listed(found)} |")
    lines += ["", "## Read by cutline, refused by Pillow", "", listed(only_here) + "." if only_here else "None."]
    lines += ["", "## Read by both, with a difference", ""]
    lines += [
        "Compared are the upright size, the orientation, and brightness and contrast of the image on white, to 0.02.",
        "",
    ]
    if differ:
        lines += ["| file | difference | why |", "| --- | --- | --- |"]
        lines += [f"| `{name}` | {'; '.join(found)} | {EXPLAINED.get(name, '')} |" for name, found in differ.items()]
    else:
        lines.append("None.")
    PAGE.write_text("\n".join(lines) + "\n")

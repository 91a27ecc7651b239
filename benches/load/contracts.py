"""Images per second through the contracts of other programs, against the native endpoint."""

import asyncio
import base64
import json
import statistics
import time

CLIENTS = 16
ROUNDS = 10
# How much slower than the native endpoint a contract may be.
BOUND = 0.97


def native(photo, parameters):
    query = "&".join(f"{name}={value}".lower() for name, value in parameters.items())
    return f"/caption/generate?{query}", {"content-type": "image/jpeg"}, photo


def chat(photo, parameters):
    url = f"data:image/jpeg;base64,{base64.b64encode(photo).decode()}"
    content = [{"type": "text", "text": "Describe this image."}, {"type": "image_url", "image_url": {"url": url}}]
    body = {"messages": [{"role": "user", "content": content}], "cutline": parameters}
    return "/v1/chat/completions", {"content-type": "application/json"}, json.dumps(body).encode()


def infer(photo, parameters):
    size = {"binary_data_size": len(photo) + 4}
    image = {"name": "image", "datatype": "BYTES", "shape": [1, 1], "parameters": size}
    head = json.dumps({"inputs": [image], "parameters": parameters}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    body = head + len(photo).to_bytes(4, "little") + photo
    return "/v2/models/cutline-small/infer", headers, body


KINDS = {"native": native, "chat": chat, "infer": infer}


async def rate(server, requests, seconds):
    """Answers per second to clients that each send the next request after the last answer."""
    done = 0
    begin = time.monotonic()
    waiting = iter(range(1 << 60))

    async def client():
        nonlocal done
        while time.monotonic() < begin + seconds:
            path, headers, body = requests[next(waiting) % len(requests)]
            async with server.session.post(server.base + path, headers=headers, data=body) as answer:
                text = await answer.read()
                assert answer.status == 200, text
            done += 1

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return done / (time.monotonic() - begin)


async def run(load, parameters):
    """Compares the kinds within a round, so that a machine whose speed drifts does not matter."""
    # The contracts of others have no colours.
    parameters = {**parameters, "colors": False}
    requests = {
        name: [make(photo, parameters) for photo in load.photos] for name, make in KINDS.items()
    }
    seconds = load.options.seconds / 10
    ratios = {name: [] for name in KINDS if name != "native"}
    rates = []
    async with load.server() as server:
        await rate(server, requests["native"], seconds)
        for number in range(ROUNDS):
            order = list(KINDS)
            # Each kind is first as often as last.
            order = order[number % len(order) :] + order[: number % len(order)]
            found = {name: await rate(server, requests[name], seconds) for name in order}
            rates.append(found["native"])
            for name, all_ratios in ratios.items():
                all_ratios.append(found[name] / found["native"])
    native_rate = statistics.median(rates)
    for name, all_ratios in ratios.items():
        ratio = statistics.median(all_ratios)
        low, high = min(all_ratios), max(all_ratios)
        more = f"{ROUNDS} rounds from {low:.1%} to {high:.1%}, native {native_rate:.1f} images/s"
        load.say("contracts", f"{name} {ratio:.1%} of native", f">= {BOUND:.0%}", ratio >= BOUND, more)

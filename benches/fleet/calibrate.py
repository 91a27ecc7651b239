"""Compares the simulation with two real servers behind HAProxy: calibrate.py BINARY SIMULATION

Measures how long each server takes for a photo when it is alone, then sends photos at random times to both
through HAProxy, and lets the simulation do the same. Needs HAProxy (or .ci/tool) and two cores: each
server has one of them.
"""

import concurrent.futures, pathlib, random, statistics, subprocess, sys, time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from replicas import PHOTOS, Fleet, post

LOAD, SECONDS = 0.6, 120


def quantile(values, share):
    return sorted(values)[round(share * (len(values) - 1))]


def alone(port, count=12):
    """Seconds of `count` requests, one after the other; the first ones warm up."""
    times = []
    for number in range(count + 2):
        begin = time.monotonic()
        status, _ = post(port, PHOTOS[number % len(PHOTOS)])
        assert status == 200, status
        times.append(time.monotonic() - begin)
    return times[2:]


def cached(port):
    """Seconds of a request without the model."""
    times = []
    for _ in range(10):
        begin = time.monotonic()
        post(port, PHOTOS[0], "/image/process")
        times.append(time.monotonic() - begin)
    return statistics.median(times)


def main(binary, simulation):
    with Fleet(binary, ["one", "two"], cores=[0, 1]) as fleet:
        # Both at once: the servers of the experiment share the machine as well.
        with concurrent.futures.ThreadPoolExecutor() as pool:
            times = sum(pool.map(alone, fleet.ports.values()), [])
        overhead = cached(fleet.port)
        service = statistics.mean(times) - overhead
        spread = min(0.9, 3**0.5 * statistics.stdev(times) / service)
        rate = LOAD * 2 / service
        generator = random.Random(1)
        with concurrent.futures.ThreadPoolExecutor(200) as pool:
            def send(photo):
                begin = time.monotonic()
                status, _ = post(fleet.port, photo)
                return status, time.monotonic() - begin

            begin, due, sent = time.monotonic(), 0.0, []
            while due < SECONDS:
                time.sleep(max(0.0, begin + due - time.monotonic()))
                sent.append(pool.submit(send, PHOTOS[len(sent) % len(PHOTOS)]))
                due += generator.expovariate(rate)
            answers = [one.result() for one in sent]
        again = statistics.mean(alone(fleet.ports["one"]) + alone(fleet.ports["two"])) - overhead
    bad = [status for status, _ in answers if status != 200]
    latencies = [seconds for status, seconds in answers if status == 200]
    print(f"service {service:.3f} s (spread {spread:.2f}; {again:.3f} s after), overhead {overhead:.3f} s")
    print(f"{len(answers)} requests in {SECONDS} s, {rate:.2f}/s, load {LOAD}, {len(bad)} not answered")
    done = subprocess.run(
        [simulation, "calibrate", *(str(x) for x in (len(answers) / SECONDS, service, spread, overhead, SECONDS))],
        check=True, capture_output=True, text=True,
    )
    real = {"mean": statistics.mean(latencies), "p50": quantile(latencies, 0.5), "p95": quantile(latencies, 0.95)}
    for line in done.stdout.splitlines():
        name, middle, low, high = line.split()
        off = float(middle) / real[name] - 1
        print(f"{name}: measured {real[name]:.3f} s, simulated {float(middle):.3f} s ({low} to {high} in 90 % of runs), off by {off:+.0%}")


if __name__ == "__main__":
    main(*sys.argv[1:])

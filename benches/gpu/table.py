"""Formats all results as Markdown."""

import parity

# Targets of the project at batch 64: speed relative to transformers, eager and compiled.
BATCH, EAGER, COMPILED = 64, 1.5, 1.5
SERVER_SHARE, LATENCY_MS = 0.85, 15


def markdown(results, options):
    parts = [head(results, options), throughput(results, options), stages(results, options),
             served(results), profiled(results), compared(results, options), omitted(results)]
    if missed := failures(results, options):
        parts.append("Missed targets and failures:\n\n" + "\n".join(f"- {line}" for line in missed))
    return "\n\n".join(part for part in parts if part) + "\n"


def head(results, options):
    machine, device = results["machine"], results["machine"]["device"]
    what = device["name"]
    if "memory_gib" in device:
        what += f" ({device['memory_gib']} GiB, compute capability {device['compute_capability']}, driver {device['driver']})"
    text = (f"{what}; {machine['cores']} cores of {machine['cpu']}; {machine['cutline']}, torch {machine['torch']}, "
            f"transformers {machine['transformers']}; {machine['date']}. BLIP base with seeded random weights"
            f"{'' if options.layers == 12 else f', but {options.layers} layers'}, 384 × 384, greedy, exactly "
            f"{options.new_tokens} tokens.")
    if options.on_cpu or options.quick:
        text = "**This run only tests the script: no number here is a measurement.** " + text
    return text


def batches(results, options):
    return [batch for batch in sorted(options.batches)
            if any(f"cutline {precision} {batch}" in results for precision in options.precisions)]


def rate(results, name, stage="end_to_end_ms"):
    times = results.get(name, {})
    return 1e3 / times[stage] if times.get(stage) else None


def number(value):
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def ratio(own, other):
    return f"{own / other:.2f}" if own and other else "–"


def peers_precision(options):
    return "f32" if options.on_cpu else "f16"


def throughput(results, options):
    there = batches(results, options)
    if not there:
        return ""
    peers = peers_precision(options)
    first = options.precisions[0]
    names = [f"cutline {precision}" for precision in options.precisions]
    lines = ["| images per second, end to end | " + " | ".join(names) + f" | transformers {peers} | compiled "
             f"| {names[0]} / transformers | {names[0]} / compiled |",
             "| --- |" + " ---: |" * (len(names) + 4)]
    for batch in there:
        own = [rate(results, f"cutline {precision} {batch}") for precision in options.precisions]
        eager, compiled = rate(results, f"transformers {batch}"), rate(results, f"torch.compile {batch}")
        cells = [*map(number, own), number(eager), number(compiled), ratio(own[0], eager), ratio(own[0], compiled)]
        lines.append(f"| batch {batch} | " + " | ".join(cells) + " |")
    failed = [f"- {name}: {results[name]['failed']}" for name in sorted(results)
              if isinstance(results[name], dict) and "failed" in results[name]]
    return "\n".join(lines) + ("\n\nFailed:\n\n" + "\n".join(failed) if failed else "")


def profiled(results):
    kernels = results.get("profile", {}).get("kernels")
    if not kernels:
        return ""
    profile, whole = results["profile"], sum(kernel["ms"] for kernel in kernels)
    lines = [f"| kernel; two passes of {profile['batch']} images with {profile['new_tokens']} tokens | ms | share | launches |",
             "| --- | ---: | ---: | ---: |"]
    lines += [f"| `{kernel['name'][:60]}` | {kernel['ms']:.1f} | {kernel['ms'] / whole:.0%} | {kernel['launches']} |" for kernel in kernels]
    return "\n".join(lines)


def omitted(results):
    """What was left out, and what stands for something else."""
    lines = [f"- {name}: {value['skipped']}" for name, value in results.items()
             if isinstance(value, dict) and "skipped" in value]
    lines += [f"- {name}: only the tower was compiled, because compiling the decoder took too long" for name, value in
              results.items() if isinstance(value, dict) and "tower_only" in value]
    return "Left out or different:\n\n" + "\n".join(lines) if lines else ""


def stages(results, options):
    there = batches(results, options)
    if not there:
        return ""
    peers = peers_precision(options)
    first = options.precisions[0]
    programs = {f"cutline {first}": f"cutline {first}", f"transformers {peers}": "transformers", "compiled": "torch.compile"}
    heads = [f"{stage}: {name}" for stage in ("vision", "decoding") for name in programs]
    lines = ["| images per second, by stage | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(heads)]
    for batch in there:
        cells = [number(rate(results, f"{program} {batch}", stage))
                 for stage in ("vision_ms", "decode_ms") for program in programs.values()]
        lines.append(f"| batch {batch} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def served(results):
    server = results.get("server", {})
    if "share" not in server:
        return ""
    return ("| over HTTP, from JPEG | |\n| --- | ---: |\n"
            f"| device, precision, batch, clients | {server['device']}, {server['precision']}, {server['batch']}, {server['clients']} in {server['client']} |\n"
            f"| kernels | {server.get('kernels', '')} |\n"
            f"| images per second, photos of {server['mean_kilobytes']:.0f} KB | {number(server['images_per_second'])} |\n"
            f"| `cutline bench` at the same batch size | {number(server['bench_images_per_second'])} |\n"
            f"| share | {server['share']:.0%} |\n"
            f"| single client, ms: median, longest | {server['latency_ms']:.1f}, {server['latency_most_ms']:.1f} |")


def compared(results, options):
    rows = []
    for precision in parity.candidates(options):
        captions, tower = results.get(f"parity {precision}", {}), results.get(f"vision {precision}", {})
        if "equal" not in captions and "largest" not in tower:
            continue
        equal = f"{captions['equal']:.1%} of {captions['captions']}" if "equal" in captions else "–"
        cider = f"{captions['cider']:.4f}, {captions['cider_change']:+.2%}" if "cider" in captions else "–"
        largest = f"{tower['largest']:.1e}, {tower['mean']:.1e}" if "largest" in tower else "–"
        rows.append(f"| {precision} | {equal} | {cider} | {largest} |")
    if not rows:
        return ""
    return ("| against f32 on the CPU | captions word for word | CIDEr-D, change | tower's output, of its range: largest, mean difference |\n"
            "| --- | ---: | ---: | ---: |\n" + "\n".join(rows))


def failures(results, options):
    """Failures and missed targets."""
    missed = [f"{name}: {value['failed']}" for name, value in results.items()
              if isinstance(value, dict) and "failed" in value]
    for precision in parity.candidates(options):
        missed += parity.judge(results, precision)
    if options.on_cpu or options.quick:
        return missed
    first = options.precisions[0]
    own = rate(results, f"cutline {first} {BATCH}")
    for peer, aim in (("transformers", EAGER), ("torch.compile", COMPILED)):
        other = rate(results, f"{peer} {BATCH}")
        if own and other and own / other < aim:
            missed.append(f"batch {BATCH}: {own / other:.2f} times the speed of {peer}, less than {aim}")
    server = results.get("server", {})
    if server.get("share", 1) < SERVER_SHARE:
        missed.append(f"server: {server['share']:.0%} of the offline throughput, less than {SERVER_SHARE:.0%}")
    if server.get("latency_ms", 0) > LATENCY_MS:
        missed.append(f"server: {server['latency_ms']:.1f} ms for one image, more than {LATENCY_MS}")
    return missed

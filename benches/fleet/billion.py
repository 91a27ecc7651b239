"""Machines, hours, network and cost of a billion photos: billion.py [IMAGES_PER_SECOND..]

The rates of CPUs are measured, and docs/performance.md says how. Rates of GPUs are assumptions until
somebody measures one; give your own as arguments. Prices are assumptions as well.
"""

import sys

PHOTOS = 1_000_000_000
BYTES = 156_000  # 816 × 612, as in docs/performance.md
DECODE = 8.1e-3  # seconds of one core for each photo, from bytes to the model's input, the same table
SHARD = 10_000
CORE_HOUR, GPU_HOUR, EGRESS = 0.04, 2.50, (0.05, 0.09)  # dollars; the last one for a GB

# Name, seconds of two cores for a photo without decoding it.
CPUS = [
    ("2 cores, AMD EPYC (Zen 4), BLIP base int8", 0.226),
    ("2 cores, Intel Xeon with AMX, BLIP base int8", 0.101),
    ("2 cores, AMD EPYC (Zen 4), embedded model int8", 1 / 26.35 - DECODE / 2),
]


def row(name, rate, unit_cost, decode_cores, photos=PHOTOS):
    hours = photos / rate / 3600
    megabits = rate * BYTES * 8 / 1e6
    print(f"| {name} | {rate:.1f} | {hours:,.0f} | {hours / 168:,.1f} | {hours / 24:,.1f} | {megabits:,.0f} | "
          f"{decode_cores} | {hours * unit_cost:,.0f} |")


print("| unit | images/s | hours of a unit | units for 7 days | units for 24 h | Mbit/s for a unit | cores for decoding | $ |")
print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
for name, seconds in CPUS:
    row(name, 1 / (seconds + DECODE / 2), 2 * CORE_HOUR, "in it")
for rate in [float(text) for text in sys.argv[1:]] or [250, 1500, 3000]:
    cores = rate * DECODE
    row("GPU at an assumed rate", rate, GPU_HOUR + cores * CORE_HOUR, f"{cores:.1f}")
terabytes = PHOTOS * BYTES / 1e12
print(f"\nPhotos: {terabytes:.0f} TB in {PHOTOS / SHARD:,.0f} shards of {SHARD * BYTES / 1e9:.2f} GB. "
      f"Decoding: {PHOTOS * DECODE / 3600:,.0f} core hours, {PHOTOS * DECODE / 86400:.0f} cores for a day. "
      f"To another region: ${terabytes * 1000 * EGRESS[0]:,.0f} to ${terabytes * 1000 * EGRESS[1]:,.0f}.")

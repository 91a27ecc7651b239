"""Writes tied.bin: what PyTorch makes of tied, sliced, transposed, half and integer tensors.

    python tests/it/weights/make_tied.py
"""

from pathlib import Path

import torch

embedding = torch.arange(12, dtype=torch.float32).reshape(4, 3)
storage = torch.arange(20, dtype=torch.float32)
torch.save(
    {
        "embedding.weight": embedding,
        "head.weight": embedding,
        "half": torch.tensor([0.5, -2.0], dtype=torch.float16),
        "bfloat": torch.tensor([0.5, -2.0], dtype=torch.bfloat16),
        "double": torch.tensor([0.1], dtype=torch.float64),
        "slice": storage[8:14].reshape(2, 3),
        "transposed": torch.arange(6, dtype=torch.float32).reshape(2, 3).t(),
        "strided": storage[::2],
        "position_ids": torch.arange(4).reshape(1, 4),
    },
    Path(__file__).with_name("tied.bin"),
)

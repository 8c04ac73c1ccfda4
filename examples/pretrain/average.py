"""Average exported trunks, weights and batch statistics alike, and write the result in half precision.

python average.py OUT.safetensors 0.5 first.safetensors 0.25 second.safetensors 0.25 third.safetensors
"""

from __future__ import annotations

import math
import sys

from safetensors.torch import load_file, save_file


def main() -> None:
    """Average what the command line names."""
    out, *rest = sys.argv[1:]
    shares, files = [float(share) for share in rest[::2]], rest[1::2]
    if not files or len(shares) != len(files) or not math.isclose(sum(shares), 1):
        raise SystemExit("usage: average.py OUT SHARE FILE [SHARE FILE ...]; the shares add up to 1")
    trunks = [load_file(file) for file in files]
    mean = {
        name: sum(share * trunk[name].float() for share, trunk in zip(shares, trunks, strict=True)).half().contiguous()
        for name in trunks[0]
    }
    save_file(mean, out, metadata={"licence": "Apache-2.0", "architecture": "resnet18"})


if __name__ == "__main__":
    main()

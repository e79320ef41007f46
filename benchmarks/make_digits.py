"""Make certtrain/data/digits.safetensors from scikit-learn's copy of the UCI digits.

This needs scikit-learn, which certtrain itself does not need.

python benchmarks/make_digits.py [FILE]
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save
from sklearn.datasets import load_digits

TARGET = Path(__file__).resolve().parent.parent / "certtrain" / "data" / "digits.safetensors"
FACTS = {
    "title": "Optical Recognition of Handwritten Digits (the test part, 1797 images)",
    "creators": "E. Alpaydin, C. Kaynak",
    "source": "UCI Machine Learning Repository, https://doi.org/10.24432/C50P49",
    "obtained": "sklearn.datasets.load_digits",
    "licence": "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/",
    "changes": "grey levels 0..16 stretched to round(level * 255 / 16)",
}


def main() -> None:
    """Parse the arguments, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", metavar="FILE", type=Path, nargs="?", default=TARGET)
    target = parser.parse_args().target
    digits = load_digits()
    images = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(digits.target).to(torch.uint8)
    target.write_bytes(save({"images": images, "labels": labels}, metadata=FACTS))
    print(f"{target}: {tuple(images.shape)} images, {len(labels)} labels")


if __name__ == "__main__":
    main()

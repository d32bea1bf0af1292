"""What two machines must agree on hangs on no processor: by construction, and tried with features on and off."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from processors import plain_processor, pseudo

from flsparse.codec import portable

ROOT = Path(__file__).parents[2]
CODEC = sorted((ROOT / "flsparse" / "codec").rglob("*.py"))
# What both sides compute beside the codec: mirrors, control variates, gossip's copies, the downlink's references, sums
SHARED = [
    *(ROOT / name for name in ("flsparse/wire/mirror.py", "clients/core/neighborhood.py")),
    *(ROOT / name for name in ("strategies/core/downlink.py", "strategies/core/relay.py")),
]

# Each value of these follows from IEEE 754, from integers, or from comparisons alone.
NUMPY = {
    *("abs", "subtract", "negative", "multiply", "add", "sqrt", "rint", "floor", "clip", "minimum", "maximum"),
    *("copysign", "signbit", "frexp", "ldexp", "nextafter", "isfinite", "where", "finfo", "iinfo", "errstate"),
    *("array", "asarray", "ascontiguousarray", "empty", "zeros", "zeros_like", "ones", "full", "arange", "repeat"),
    *("concatenate", "stack", "split", "ravel", "take", "delete", "diff", "cumsum", "accumulate", "divmod"),
    *(
        "bincount",
        "unique",
        "searchsorted",
        "flatnonzero",
        "count_nonzero",
        "tile",
        "bitwise_and",
        "bitwise_xor",
        "nonzero",
        "array_equal",
        "partition",
    ),
    *("packbits", "unpackbits", "frombuffer", "unravel_index", "argsort", "insert", "empty_like", "at"),
    *("dtype", "bool_", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "intp"),
    *("float16", "float32", "float64", "ndarray", "random", "inf", "newaxis", "lexsort", "default_rng"),
    "matmul",  # of integers, see below
}
MATH = {"sqrt", "prod", "ceil", "floor", "inf", "isfinite", "nan", "frexp"}
METHODS = {"mean", "std", "var", "dot", "trace", "prod"}  # that sum, or multiply, in an order of their own


def names_used(file: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of whatever is not known to be portable in a module."""
    tree = ast.parse(file.read_text())
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "np" and node.attr not in NUMPY | {"integer", "floating", "generic"}:
                yield node.lineno, f"np.{node.attr}"
            if node.value.id == "math" and node.attr not in MATH:
                yield node.lineno, f"math.{node.attr}"
        if isinstance(node, ast.ImportFrom) and node.module == "math" and {n.name for n in node.names} - MATH:
            yield node.lineno, "from math"
        if isinstance(node, ast.ImportFrom | ast.Import) and any(
            name.split(".")[0] in ("torch", "scipy", "cmath")
            for name in (getattr(node, "module", "") or "", *(n.name for n in node.names))
        ):
            yield node.lineno, "torch or scipy"
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            yield node.lineno, "@"
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
            sides = (node.left, node.right)
            if not all(isinstance(side, ast.Constant) and isinstance(side.value, int) for side in sides):
                yield node.lineno, "**"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in METHODS:
                yield node.lineno, f".{node.func.attr}()"
            if node.func.attr == "sum" and not is_integer_sum(node, parents):
                yield node.lineno, ".sum() of what may be floats: use portable.total, or say int(...) or dtype="


def is_integer_sum(call: ast.Call, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether a sum says that it is one of integers: ``int(x.sum())`` or ``x.sum(dtype=...)``."""
    outer = parents[call]
    is_int = isinstance(outer, ast.Call) and isinstance(outer.func, ast.Name) and outer.func.id == "int"
    return is_int or any(k.arg == "dtype" for k in call.keywords)


@pytest.mark.parametrize("file", [*CODEC, *SHARED], ids=lambda file: file.stem)
def test_nothing_that_a_processor_decides_is_called(file):
    assert list(names_used(file)) == []


def test_the_check_above_finds_what_it_looks_for(tmp_path):
    file = tmp_path / "bad.py"
    file.write_text(
        "import math\nimport numpy as np\nfrom math import exp\ny = np.log(x) + x**3 + a @ b + x.sum() + x.mean()\n"
        "z = math.pow(x, 2) + np.linalg.norm(x)\n"
    )
    found = [what for _, what in names_used(file)]
    for bad in ("np.log", "**", "@", "from math", ".mean()", "math.pow", "np.linalg"):
        assert bad in found
    assert any(what.startswith(".sum()") for what in found)


def test_only_integers_are_multiplied_as_matrices():
    users = [file.stem for file in CODEC if "np.matmul" in file.read_text()]
    assert sorted(users) == ["bits", "rank_one"]  # of uint64 fields; of int64 costs


def test_logarithms_are_exact_to_a_thousandth():
    n = np.concatenate([np.arange(1, 5000), 1 << np.arange(14, 53)])
    assert np.abs(portable.log2(n) / (1 << portable.FRACTION) - np.log2(n)).max() < 1e-3
    assert (portable.log2(1 << np.arange(53)) == np.arange(53) << portable.FRACTION).all()


def test_entropy_is_that_of_the_counts():
    counts = np.array([0, 3, 1000, 17, 20])
    share = counts[1:] / counts.sum()
    assert portable.entropy_bits(counts) == pytest.approx(-(counts[1:] * np.log2(share)).sum(), rel=1e-3)
    assert portable.entropy_bits(np.array([5])) == portable.entropy_bits(np.zeros(3, int)) == 0


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1027, 40_000])
def test_total_is_the_sum(size):
    x = pseudo(size, 3)
    assert portable.total(x) == pytest.approx(float(x.sum()), abs=1e-9)
    assert portable.total(x.astype(np.float32)) == pytest.approx(float(x.sum()), abs=1e-3)


def test_power_is_exact_where_a_double_is():
    assert [portable.power(3.0, n) for n in (0, 1, 2, 5, 20)] == [3**n for n in (0, 1, 2, 5, 20)]
    assert portable.power(0.999, 100_000) == pytest.approx(0.999**100_000)


@pytest.mark.parametrize("base", [0.0, 1e-9, 0.3, 0.999, 1.0])
def test_powers_are_the_same_bits(base):
    exponents = np.array([0, 1, 2, 3, 17, 1000, 1 << 40])
    assert portable.powers(base, exponents).tolist() == [portable.power(base, int(n)) for n in exponents]
    assert portable.powers(base, exponents[:0]).size == 0


@pytest.mark.parametrize("size", [0, 1, 512, 513, 1027, 9001])
def test_totals_of_rows_are_the_same_bits(size):
    x = pseudo(3 * size, 4).reshape(3, size)
    assert portable.totals(x).tolist() == [portable.total(row) for row in x]


# -- across processors -------------------------------------------------------------------------------------------------


def on_processor(folder: Path, *, write: bool, plain: bool) -> str:
    """Write the payloads, or not, and return digests of payloads and arrays, as another process sees them."""
    folder.mkdir(exist_ok=True)
    script = [sys.executable, str(ROOT / "tests" / "every_payload.py"), str(folder), *(["--write"] if write else [])]
    environment = os.environ | (plain_processor() if plain else {})
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("plain", [False, True], ids=["this processor writes", "a plain one writes"])
def test_payloads_and_what_they_decode_to_are_alike_on_a_plain_processor(tmp_path, plain):
    written = on_processor(tmp_path / "one", write=True, plain=plain)
    assert len(written.splitlines()) > 40
    assert on_processor(tmp_path / "one", write=False, plain=not plain) == written
    assert on_processor(tmp_path / "two", write=True, plain=not plain) == written  # equal bytes, too


def test_the_plain_processor_is_another_one():
    code = "import numpy._core._multiarray_umath as u; print([n for n in u.__cpu_dispatch__ if u.__cpu_features__[n]])"
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, env=os.environ | plain_processor(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

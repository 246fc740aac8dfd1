r"""Forms of a 3x3 convolution and its gradients on this device: time and error of each.

    python scripts/bench_convolution.py
    python scripts/bench_convolution.py --shapes 2x32x32x256 8x32x40x64

Forms are timed in turns, one call each per round; medians, and errors against float64 as a share
of the largest value. A shape is images x height x width x channels, with as many channels out;
float32, NHWC. "now" is what the layers of the detector do. The last line is JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from atss_jax.models.convolutions import convolution

SHAPES = ("2x32x32x256", "2x64x64x64", "2x16x16x256", "8x32x40x64", "8x16x20x128")
"""Head and C2 of R-50 at 256x256, head and C4 of the recipe for own data."""
Form = Callable[..., Array]


def library(x: Array, kernel: Array) -> Array:
    """XLA's convolution; its gradients by automatic differentiation."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)


def channels_first(x: Array, kernel: Array) -> Array:
    """The same, in NCHW with OIHW."""
    found = lax.conv_general_dilated(
        x.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1), (1, 1), "SAME"
    )
    return found.transpose(0, 2, 3, 1)


def taps(x: Array) -> list[Array]:
    """The map as each of the nine positions of the kernel sees it."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    return [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]


def gathered(x: Array, kernel: Array) -> Array:
    """All taps side by side (im2col), and one matrix product."""
    columns = jnp.concatenate(taps(x), axis=3)
    return columns @ kernel.reshape(-1, kernel.shape[3])


def shifted(x: Array, kernel: Array) -> Array:
    """Nine matrix products, added up."""
    products = (tap @ kernel[n // 3, n % 3] for n, tap in enumerate(taps(x)))
    return sum(products, start=jnp.zeros((), x.dtype))


_INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float32)
_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float32)


def winograd(x: Array, kernel: Array) -> Array:
    """F(2x2, 3x3) of Lavin and Gray (arXiv 1509.09308): 16 instead of 36 products per 2x2 cells."""
    batch, height, width, _ = x.shape
    rows, columns = -(-height // 2), -(-width // 2)
    bottom, right = 2 * rows + 1 - height, 2 * columns + 1 - width
    padded = jnp.pad(x, ((0, 0), (1, bottom), (1, right), (0, 0)))
    tiles = jnp.stack(
        [
            jnp.stack([padded[:, i : i + 2 * rows : 2, j : j + 2 * columns : 2] for j in range(4)])
            for i in range(4)
        ]
    )
    seen = jnp.einsum("pi,qj,ijbrcn->pqbrcn", _INPUT, _INPUT, tiles)
    wanted = jnp.einsum("pi,qj,ijnm->pqnm", _KERNEL, _KERNEL, kernel)
    product = jnp.einsum("pqbrcn,pqnm->pqbrcm", seen, wanted)
    cells = jnp.einsum("yp,xq,pqbrcm->brycxm", _OUTPUT, _OUTPUT, product)
    return cells.reshape(batch, 2 * rows, 2 * columns, -1)[:, :height, :width]


FORWARD: dict[str, Form] = {
    "now": convolution,
    "library": library,
    "channels first": channels_first,
    "gathered, one product": gathered,
    "shifted, nine products": shifted,
    "winograd": winograd,
}


def by_input(form: Form) -> Form:
    """Gradient by the map; of a form that is differentiated."""
    return lambda x, kernel, cotangent: jax.vjp(lambda x: form(x, kernel), x)[1](cotangent)[0]


def by_input_as_forward(form: Form) -> Form:
    """Gradient by the map, as a convolution with the turned kernel in this form."""
    return lambda x, kernel, cotangent: form(cotangent, kernel[::-1, ::-1].swapaxes(2, 3))


def by_kernel(form: Form) -> Form:
    """Gradient by the kernel; of a form that is differentiated."""
    return lambda x, kernel, cotangent: jax.vjp(lambda k: form(x, k), kernel)[1](cotangent)[0]


def gathered_by_kernel(x: Array, kernel: Array, cotangent: Array) -> Array:
    """Gradient by the kernel as one product with all taps side by side."""
    columns = jnp.concatenate(taps(x), axis=3).reshape(-1, 9 * x.shape[3])
    return (columns.T @ cotangent.reshape(-1, cotangent.shape[3])).reshape(kernel.shape)


INPUT_GRADIENT: dict[str, Form] = {
    "now": by_input(convolution),
    "library": by_input(library),
    "channels first": by_input(channels_first),
    "gathered, one product": by_input_as_forward(gathered),
    "shifted, nine products": by_input_as_forward(shifted),
    "winograd": by_input_as_forward(winograd),
}
KERNEL_GRADIENT: dict[str, Form] = {
    "now": by_kernel(convolution),
    "library": by_kernel(library),
    "channels first": by_kernel(channels_first),
    "gathered, one product": gathered_by_kernel,
    "shifted, nine products": by_kernel(shifted),
}
KINDS = {"forward": FORWARD, "by input": INPUT_GRADIENT, "by kernel": KERNEL_GRADIENT}


def expected(kind: str, x: np.ndarray, kernel: np.ndarray, cotangent: np.ndarray) -> np.ndarray:
    """The value in float64, by NumPy."""

    def nine(x: np.ndarray) -> list[np.ndarray]:
        padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
        height, width = x.shape[1:3]
        return [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]

    if kind == "by kernel":
        products = [np.tensordot(tap, cotangent, ((0, 1, 2), (0, 1, 2))) for tap in nine(x)]
        return np.stack(products).reshape(kernel.shape)
    if kind == "by input":
        x, kernel = cotangent, kernel[::-1, ::-1].swapaxes(2, 3)
    return np.sum([tap @ kernel[n // 3, n % 3] for n, tap in enumerate(nine(x))], axis=0)


def measure(kind: str, shape: tuple[int, ...], rounds: int) -> dict[str, tuple[float, float]]:
    """Median ms and relative error of each form of a kind, timed in turns."""
    random = np.random.default_rng(0)
    x, cotangent = (random.normal(size=shape).astype(np.float32) for _ in range(2))
    kernel = random.normal(size=(3, 3, shape[3], shape[3])).astype(np.float32)
    arguments = (x, kernel) if kind == "forward" else (x, kernel, cotangent)
    arguments = jax.device_put(arguments)
    right = expected(kind, x, kernel, cotangent)
    programs = {name: jax.jit(form) for name, form in KINDS[kind].items()}
    errors, times = {}, {name: [] for name in programs}
    for name, program in programs.items():
        found = np.asarray(program(*arguments))
        errors[name] = float(np.abs(found - right).max() / np.abs(right).max())
    for _ in range(rounds):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: (statistics.median(times[name]), errors[name]) for name in programs}


def main() -> None:
    """Measures all, prints tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    rows = []
    for kind, forms in KINDS.items():
        for text in args.shapes:
            shape = tuple(int(side) for side in text.split("x"))
            for name, (ms, error) in measure(kind, shape, args.rounds).items():
                rows.append({"kind": kind, "shape": text, "form": name, "ms": ms, "error": error})
        print(f"{kind:26}" + "".join(f"{text:>14}" for text in args.shapes), flush=True)
        for name in forms:
            mine = [row for row in rows if row["kind"] == kind and row["form"] == name]
            worst = max(row["error"] for row in mine)
            cells = "".join(f"{row['ms']:11.2f} ms" for row in mine)
            print(f"  {name:24}{cells}   error {worst:.0e}")
    print(json.dumps({"jax": jax.__version__, "rows": rows}))


if __name__ == "__main__":
    main()

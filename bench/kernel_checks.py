"""Are the kernels right on this device? A fixed list of problems, forward and backward, twice: against the dense reference in
float64, and against itself, bit for bit. Compilers do break single configurations of correct kernels.

``python -m longformer_triton.bench.kernel_checks DEVICE PRECISION HEAD_DIM`` runs the list once and prints a line of JSON for
each problem; ``doctor`` starts it for every precision and width, in processes of their own, since a fault of a GPU spoils all
that its process does afterwards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longformer_triton.kernels import AttentionPattern, longformer_attention, sliding_window_attention


class Precision(NamedTuple):
    """How numbers are held and multiplied; ``tolerance`` bounds the error in units of the largest value."""

    dtype: torch.dtype
    tolerance: float
    tf32: bool = False


# A few roundings of inputs and probabilities in each type. TF32 products keep as many bits as float16's, and cut off the rest.
PRECISIONS = {
    "float16": Precision(torch.float16, 4e-3),
    "bfloat16": Precision(torch.bfloat16, 3e-2),
    "float32": Precision(torch.float32, 2e-5),
    "tf32": Precision(torch.float32, 8e-3, tf32=True),
}
HEAD_DIMS = (32, 64, 80, 128, 256)


@contextlib.contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """Let float32 products be TF32's where there are such, or exact."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclasses.dataclass(frozen=True)
class Check:
    """One problem that the kernels are run on; lengths are no multiple of any tile."""

    name: str
    padding: str = "none"
    num_globals: int = 0
    dropout_p: float = 0.0
    dilation: int = 1
    is_causal: bool = False
    key_heads: int = 2
    seq_len: int = 333
    window: tuple[int, int] = (100, 60)
    tokens_first: bool = False  # in memory (batch, seq_len, heads, head_dim), as a model's states are


CHECKS = (
    Check("window"),
    Check("causal, grouped heads", is_causal=True, key_heads=1),
    Check("dilated", dilation=3, window=(20, 20)),
    Check("dilated, dropout, padding and globals", dilation=3, window=(20, 20), dropout_p=0.1, padding="right", num_globals=20),
    Check("padding and globals", padding="right", num_globals=20),
    Check("holes", padding="holes", num_globals=3),
    Check("dropout", dropout_p=0.1),
    # What is dropped comes by 64 keys at a time, the first of which lie in the padding here.
    Check("dropout, padding on the left", dropout_p=0.1, padding="left"),
    # As a model's layers: rows of one head lie apart in memory.
    Check("tokens first", tokens_first=True),
    Check("tokens first, grouped heads, dropout and globals", tokens_first=True, key_heads=1, dropout_p=0.1, num_globals=20),
    Check("dropout, padding and globals", dropout_p=0.1, padding="right", num_globals=20),
    # Forward and in half precision, PyTorch's fused kernels compute these where it has some; the padded one is ours everywhere.
    Check("window covers all", window=(400, 400)),
    Check("window covers all, globals, tokens first", num_globals=20, window=(400, 400), tokens_first=True),
    Check("window covers all, causal, grouped heads", is_causal=True, key_heads=1, window=(400, 0)),
    Check("window covers all, padding", padding="right", window=(400, 400)),
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of one check."""

    check: str
    precision: str
    head_dim: int
    error: float = 0.0  # the largest, in units of the largest value
    repeats: bool = True  # whether two runs were equal to the bit
    refusal: str = ""  # why the kernels do not take such tensors, if they do not
    failure: str = ""  # what was raised instead

    @property
    def is_well(self) -> bool:
        """Whether the kernel is right and repeats, or says that it does not serve."""
        return not self.failure and self.repeats and self.error <= PRECISIONS[self.precision].tolerance

    def __str__(self) -> str:
        """One line for a person."""
        what = f"{self.precision} head_dim {self.head_dim}, {self.check}"
        if self.refusal or self.failure:
            return f"{what}: {self.refusal or self.failure}"
        same = "repeats" if self.repeats else "does not repeat"
        return f"{what}: error {self.error:.1e} of {PRECISIONS[self.precision].tolerance:.0e} allowed, {same}"


def _results(check: Check, inputs: list[Tensor], pattern: AttentionPattern, backend: str) -> list[Tensor]:
    """out, lse and all gradients."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    options: dict[str, Any] = {
        "dropout_p": check.dropout_p,
        "dropout_seed": torch.tensor(7, device=inputs[0].device),
        "return_lse": True,
    }
    if check.num_globals:
        query, key, value, query_global, key_global, value_global = leaves
        out, lse = longformer_attention(
            query, key, value, query_global, key_global, value_global, pattern, backend=backend, **options
        )
    else:
        query, key, value = leaves
        out, lse = sliding_window_attention(query, key, value, pattern=pattern, backend=backend, **options)
    weight = torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape)
    grads = torch.autograd.grad((out * weight.to(out.dtype)).sum() + lse[lse > -torch.inf].sum(), leaves)
    return [out.detach(), lse.detach(), *grads]


def run_check(check: Check, precision: str, head_dim: int, device: torch.device) -> Outcome:
    """Run the kernels twice, and the reference once in float64."""
    batch, heads, length = 2, 2, check.seq_len
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(batch, length, dtype=torch.bool)
    if check.padding == "right":
        mask[0, length // 2 :] = False
    if check.padding == "left":
        mask[0, : length // 3] = False
    if check.padding == "holes":
        mask = torch.rand(batch, length, generator=generator) < 0.8
    marks = torch.zeros(batch, length, dtype=torch.bool)
    marks[:, torch.randperm(length // 2, generator=generator)[: check.num_globals]] = True
    pattern = AttentionPattern.from_masks(
        None if check.padding == "none" else mask.to(device), marks.to(device) if check.num_globals else None,
        shape=(batch, length), device=device, window=check.window, dilation=check.dilation, is_causal=check.is_causal,
    )  # fmt: skip
    tokens = [(heads, length), (check.key_heads, length), (check.key_heads, length)]
    if check.num_globals:
        tokens += [(heads, pattern.global_index.shape[1]), *tokens[1:]]
    inputs = [
        torch.randn(batch, h, n, head_dim, generator=generator).to(device, PRECISIONS[precision].dtype) for h, n in tokens
    ]
    if check.tokens_first:
        inputs = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in inputs]
    with float32_products(tf32=PRECISIONS[precision].tf32):
        first, second = (_results(check, inputs, pattern, "triton") for _ in range(2))
    exact = _results(check, [tensor.double() for tensor in inputs], pattern, "reference")
    error = 0.0
    for got, expected in zip(first, exact, strict=True):
        finite = expected > -torch.inf
        if got.isnan().any() or not torch.equal(got > -torch.inf, finite):
            error = math.inf
        elif finite.any():
            difference = (got[finite].double() - expected[finite]).abs().max() / expected[finite].abs().max().clamp_min(1e-3)
            error = max(error, difference.item())
    repeats = all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    return Outcome(check.name, precision, head_dim, error, repeats)


def run_checks(precision: str, head_dim: int, device: torch.device) -> Iterator[Outcome]:
    """Every check in one precision and width; what is refused or raised is an outcome too."""
    for check in CHECKS:
        try:
            yield run_check(check, precision, head_dim, device)
        except NotImplementedError as refusal:
            yield Outcome(check.name, precision, head_dim, refusal=str(refusal))
        except Exception as failure:  # whatever a compiler or a driver raises, the other checks are to run
            yield Outcome(check.name, precision, head_dim, failure=f"{type(failure).__name__}: {failure}")


def _run_apart(device: str, precision: str, head_dim: int) -> list[Outcome]:
    """:func:`run_checks` in a process of its own; checks that it did not come to have failed."""
    command = [sys.executable, "-m", __name__, device, precision, str(head_dim)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    outcomes = [Outcome(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]
    if len(outcomes) < len(CHECKS):
        said = done.stderr.strip().splitlines()
        failure = f"the process ended with status {done.returncode}" + (f", {said[-1]}" if said else "")
        outcomes += [Outcome(check.name, precision, head_dim, failure=failure) for check in CHECKS[len(outcomes) :]]
    return outcomes


def run_all(device: str, jobs: int, precisions: Iterable[str] = tuple(PRECISIONS)) -> Iterator[Outcome]:
    """Every check in every precision and width, ``jobs`` processes at once: most of the time goes into compiling."""
    groups = [(precision, head_dim) for precision in precisions for head_dim in HEAD_DIMS]
    with ThreadPoolExecutor(jobs) as pool:
        for outcomes in pool.map(lambda group: _run_apart(device, *group), groups):
            yield from outcomes


def _main(device: str, precision: str, head_dim: str) -> None:
    for outcome in run_checks(precision, int(head_dim), torch.device(device)):
        sys.stdout.write(json.dumps(dataclasses.asdict(outcome)) + "\n")
        sys.stdout.flush()  # what was found is known even if the next check ends the process


if __name__ == "__main__":
    _main(*sys.argv[1:])

"""Reading the assembly of a compiled kernel, NVIDIA's or AMD's: its inner loops, and what kinds of instructions they hold."""

from __future__ import annotations

import collections
import re

# How the instructions of either begin. A dot ends a name: what follows are modifiers.
MIX = {
    "matrix": ("HMMA", "HGMMA", "UTCHMMA", "v_mfma"),
    "exp2": ("MUFU", "v_exp"),
    "float": ("FFMA", "FMUL", "FADD", "FMNMX", "v_fma", "v_mul_f", "v_add_f", "v_sub_f", "v_max", "v_min_f", "v_pk"),
    "mask": ("FSEL", "SEL", "ISETP", "FSETP", "PLOP3", "v_cndmask", "v_cmp"),
    "integer": ("IMAD", "IADD", "VIADD", "LOP3", "SHF", "LEA", "PRMT", "v_add_u", "v_mul_lo", "v_mul_hi", "v_mad_u", "v_lsh",
                "v_xor", "v_and", "v_or", "v_bfi", "v_perm", "v_alignbit"),
    "shared": ("LDS", "STS", "ds_"),
    "convert": ("F2F", "v_cvt"),
}  # fmt: skip
_NVIDIA = {
    "label": re.compile(r"\s*(\.L_x_\d+):"),
    "instruction": re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)"),
    "branch": re.compile(r"BRA\S*\s+.*`\((\.L_x_\d+)\)"),
}
_AMD = {
    "label": re.compile(r"(\.LBB\d+_\d+):"),
    "instruction": re.compile(r"\s+([a-z]+_[a-z0-9_]+)"),
    "branch": re.compile(r"\ss_c?branch\S*\s+(\.LBB\d+_\d+)"),
}


def kind_of(instruction: str) -> str:
    """The key of ``MIX`` that an instruction belongs to, "other" if none."""
    return next((kind for kind, names in MIX.items() if instruction.startswith(names)), "other")


def kinds(loop: collections.Counter[str]) -> collections.Counter[str]:
    """How many instructions of each kind a loop holds."""
    counts: collections.Counter[str] = collections.Counter()
    for name, number in loop.items():
        counts[kind_of(name)] += number
    return counts


def inner_loops(assembly: str, *, is_nvidia: bool) -> list[collections.Counter[str]]:
    """The instructions between each label and the last branch back to it, innermost loops only."""
    patterns = _NVIDIA if is_nvidia else _AMD
    names: list[str] = []
    labels: dict[str, int] = {}
    branches: dict[int, int] = {}
    for line in assembly.splitlines():
        label = patterns["label"].match(line)
        if label:
            labels[label[1]] = len(names)
        instruction = patterns["instruction"].match(line)
        if instruction:
            target = patterns["branch"].search(line)
            if target and target[1] in labels:
                branches[labels[target[1]]] = len(names) + 1
            names.append(instruction[1])
    spans = list(branches.items())
    inner = [
        (start, end) for start, end in spans if not any(start <= s and e <= end and (s, e) != (start, end) for s, e in spans)
    ]
    return [collections.Counter(names[start:end]) for start, end in inner]


def clean_loop(assembly: str, *, is_nvidia: bool, by_matrix_units: bool) -> collections.Counter[str]:
    """The loop over whole tiles that masks nothing: of those with products and the most exponentials, the fewest selections.

    Products are matrix instructions, or FFMA in exact float32 on NVIDIA, whose matrix units have none. Loops over global keys,
    whose tiles are narrow, have fewer exponentials.
    """
    loops = [
        loop
        for loop in inner_loops(assembly, is_nvidia=is_nvidia)
        if (kinds(loop)["matrix"] if by_matrix_units else loop["FFMA"])
    ]
    most = max((kinds(loop)["exp2"] for loop in loops), default=0)
    whole = [loop for loop in loops if kinds(loop)["exp2"] >= 0.9 * most]
    return min(whole, key=lambda loop: (kinds(loop)["mask"], loop.total()), default=collections.Counter())

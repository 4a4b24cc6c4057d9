"""The machine that executes PTX for the tests: it must be as strict as a GPU with its sanitizer, and as exact."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longformer_triton.bench.ptx_machine.machine import Code, Program
from longformer_triton.bench.ptx_machine.memory import FaultError, GlobalMemory, SharedMemory
from longformer_triton.bench.ptx_machine.parse import parse
from longformer_triton.bench.ptx_machine.values import Registers, bfloat16_bits, compute_of, from_bfloat16

BEGIN = """
    ld.param.b64 %rd1, [first];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    mov.b32 %r9, global_smem;
    shl.b32 %r3, %r1, 2;
    add.s32 %r4, %r9, %r3;
    xor.b32 %r5, %r3, 128;
    add.s32 %r6, %r9, %r5;
    cvt.u64.u32 %rd2, %r3;
    add.s64 %rd3, %rd1, %rd2;
"""  # r4: a word of shared memory for each thread; r6: that of the thread in the other warp; rd3: a word of the tensor


def execute(body: str, tensor: torch.Tensor | None = None, *, warps: int = 2, programs: int = 1) -> torch.Tensor:
    """Run instructions over a tensor of 64 words, after ``BEGIN``."""
    tensor = torch.zeros(64, dtype=torch.int32) if tensor is None else tensor
    kernel = parse(".visible .entry test(\n.param .u64 .ptr .global .align 1 first\n)\n{" + BEGIN + body + "\nret;\n}\n")
    memory = GlobalMemory([tensor])
    code = Code(kernel)
    for number in range(programs):
        code.run(Program(number, warps, {"first": memory.address(tensor)}, memory, SharedMemory(1024, find_races=True)))
    memory.store_back()
    return tensor


def test_warps_exchange_words_over_a_barrier():
    got = execute("st.shared.b32 [%r4+0], %r1; bar.sync 0; ld.shared.b32 %r7, [%r6+0]; st.global.b32 [%rd3+0], {%r7};")
    assert got.tolist() == [thread ^ 32 for thread in range(64)]


FAULTS = {
    "read_without_a_barrier": (
        "st.shared.b32 [%r4+0], %r1; ld.shared.b32 %r7, [%r6+0];",
        "reads .* another wrote, with no barrier",
    ),
    "write_without_a_barrier": (
        "st.shared.b32 [%r4+0], %r1; bar.sync 0; ld.shared.b32 %r7, [%r6+0]; st.shared.b32 [%r4+0], %r7;",
        "writes .* another read, with no barrier",
    ),
    "two_writers": ("st.shared.b32 [%r4+0], %r1; st.shared.b32 [%r6+0], %r1;", "writes .* another wrote, with no barrier"),
    "outside_of_the_tensor": ("ld.global.b32 {%r7}, [%rd3+4];", "outside of every tensor"),
    "far_outside": ("ld.global.b32 {%r7}, [%rd2+0];", "far outside of every tensor"),
    "outside_of_shared_memory": ("ld.shared.b32 %r7, [%r4+1000];", "outside of shared memory"),
    "misaligned": ("ld.global.b32 {%r7}, [%rd3+2];", "misaligned access of 4 bytes"),
    "misaligned_vector": ("ld.shared.v2.b32 {%r7, %r8}, [%r4+0];", "misaligned access of 8 bytes of shared memory"),
    "barrier_for_one_warp": (
        "setp.lt.u32 %p1, %r1, 32; @%p1 bra $one; ret;\n$one:\nbar.sync 0;",
        "that the others do not reach",
    ),
    "wait_without_end": (
        "mbarrier.init.shared::cta.b64 [%r9], 1; mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r9], 0;",
        "a wait that never ends",
    ),
    "loop_without_end": ("$loop:\nbra.uni $loop;", "does not end"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault, monkeypatch):
    monkeypatch.setattr("longformer_triton.bench.ptx_machine.machine.LIMIT", 1000)
    body, message = FAULTS[fault]
    with pytest.raises(FaultError, match=message):
        execute(body)


@pytest.mark.parametrize(
    "body", ["st.global.b32 [%rd3+0], {%r2};", "ld.global.b32 {%r7}, [%rd3+0]; st.global.b32 [%rd3+0], {%r7};"]
)
def test_programs_of_one_launch_may_not_share_what_they_write(body):
    with pytest.raises(FaultError, match="program"):
        execute(body, programs=2)


def test_what_no_barrier_orders_is_forgiven_where_all_write_the_same():
    execute("mov.b32 %r7, 5; st.shared.b32 [%r4+0], %r7; st.shared.b32 [%r6+0], %r7;")


COPY = """
    cp.async.ca.shared.global [%r4+0], [%rd3+0], 0x4, 4; cp.async.commit_group; cp.async.wait_group {pending};
    ld.shared.b32 %r7, [%r4+0]; neg.s32 %r7, %r7; st.global.b32 [%rd3+0], {{%r7}};
"""


def test_an_asynchronous_copy_arrives_when_it_is_waited_for():
    words = torch.arange(64, dtype=torch.int32)
    assert execute(COPY.format(pending=0), words).tolist() == [-thread for thread in range(64)]
    with pytest.raises(FaultError, match="where a copy may still arrive"):
        execute(COPY.format(pending=1), words)


PRODUCT = """
    mov.b32 %r7, 0; st.shared.b32 [%r4+0], %r7; st.shared.b32 [%r4+512], %r7; {fence}
    bar.sync 0;
    shr.u32 %r8, %r9, 4; cvt.u64.u32 %rd4, %r8; or.b64 %rd5, %rd4, 4611686293305294848;
    mov.b32 %r20, 0; mov.b32 %r21, 0; mov.b32 %r22, 0; mov.b32 %r23, 0; mov.pred %p1, 0;
    wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {{%r30,%r31,%r32,%r33}}, {{%r20,%r21,%r22,%r23}}, %rd5, %p1, 1, 1, 0;
    wgmma.commit_group.sync.aligned; {early}
    wgmma.wait_group.sync.aligned 0;
"""


def test_a_product_reads_what_threads_stored_after_a_fence():
    execute(PRODUCT.format(fence="fence.proxy.async.shared::cta;", early=""), torch.zeros(128), warps=4)
    with pytest.raises(FaultError, match=r"no fence\.proxy\.async"):
        execute(PRODUCT.format(fence="", early=""), torch.zeros(128), warps=4)


def test_nobody_may_store_where_a_product_still_reads():
    with pytest.raises(FaultError, match="where a matrix product may still read"):
        execute(
            PRODUCT.format(
                fence="fence.proxy.async.shared::cta;", early="st.shared.b32 [%r4+0], %r1; fence.proxy.async.shared::cta;"
            ),
            torch.zeros(128),
            warps=4,
        )


def test_an_unknown_instruction_is_named():
    with pytest.raises(NotImplementedError, match=r"does not know 'popc\.b32 %r7, %r1'"):
        execute("popc.b32 %r7, %r1;")


@given(values=st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_bfloat16_rounds_like_pytorch(values):
    value = np.array(values, np.float32)
    expected = torch.from_numpy(value).bfloat16().float().numpy()
    np.testing.assert_array_equal(from_bfloat16(bfloat16_bits(value)), expected)


WORDS = st.lists(st.integers(0, 2**32 - 1), min_size=3, max_size=3)
INTEGER = {
    "mul.hi.u32 %r4, %r1, %r2": lambda a, b, c: a * b >> 32,
    "mad.lo.s32 %r4, %r1, %r2, %r3": lambda a, b, c: a * b + c,
    "shr.s32 %r4, %r1, 35": lambda a, b, c: -(a >> 31),
    "shl.b32 %r4, %r1, 33": lambda a, b, c: 0,
    "bfe.u32 %r4, %r1, 5, 7": lambda a, b, c: (a >> 5) & 127,
    "bfe.s32 %r4, %r1, 5, 1": lambda a, b, c: -((a >> 5) & 1),
    "prmt.b32 %r4, %r1, %r2, 0x5410U": lambda a, b, c: (b & 0xFFFF) << 16 | a & 0xFFFF,
    "cvt.s32.s8 %r4, %r1": lambda a, b, c: (a & 255) - (a & 128) * 2,
    "add.s16x2 %r4, %r1, %r2": lambda a, b, c: ((a >> 16) + (b >> 16) << 16) | ((a + b) & 0xFFFF),
}


@pytest.mark.parametrize("text", INTEGER)
@given(words=WORDS)
def test_integers(text, words):
    registers = Registers(4)
    registers |= {f"%r{1 + place}": np.full(4, word, np.uint32) for place, word in enumerate(words)}
    kernel = parse(f".visible .entry test()\n{{\n{text};\n}}\n")
    (result,) = compute_of(kernel.instructions[0])(registers)
    assert int(result[0]) % 2**32 == INTEGER[text](*words) % 2**32

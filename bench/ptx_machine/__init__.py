"""PTX executed on the CPU: what Triton compiled for a GPU runs here, one program at a time, on NumPy arrays of threads.

Triton's interpreter runs the *source* of a kernel, in its own arithmetic; this machine runs the *compiled* kernel: registers,
shared memory with its swizzles, asynchronous copies, barriers, matrix instructions of warps and warp groups, bfloat16. It is
as strict as the PTX ISA allows: what may arrive late arrives as late as it may, memory begins as NaN, and an access outside
of every tensor, a misaligned one, or one that no barrier orders, raises. So it also does what compute-sanitizer's memcheck and
racecheck do. Source: NVIDIA, "Parallel Thread Execution ISA", version 8.7; section numbers below are those of its chapter 9.

* ``parse``: text to instructions
* ``values``: reading operands, and instructions that only compute
* ``memory``: global memory with its bounds, shared memory with its hazards
* ``transfers``: loads, stores, asynchronous copies and their barriers
* ``matrices``: exchanges within a warp, and matrix products
* ``machine``: one program, instruction by instruction
* ``launches``: a :class:`Launch` of the Triton backend, compiled and run

It knows the instructions that the kernels use on sm_80 to sm_90 and sm_120, and raises at any other.
"""

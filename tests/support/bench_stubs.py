"""Child processes that misbehave, for the tests of the worker; importable by a spawned process."""

import os


def die_on_the_first_case(connection, device_name, threads, measure):
    """What the system does to a process that takes too much memory."""
    connection.recv()
    os.kill(os.getpid(), 9)


def never_answer(connection, device_name, threads, measure):
    """Take the case and wait for a second one, which does not come."""
    connection.recv()
    connection.recv()


def meet_a_fault(case, device, cell_seconds):
    """What PyTorch raises when a kernel has left its memory, and in every call after it; else the number of the process."""
    if case == "fault":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return os.getpid()

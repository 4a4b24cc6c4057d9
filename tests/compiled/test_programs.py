"""The programs that are kept by what decides about them: those that Triton would have chosen, and no others."""

import collections
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from triton.runtime import driver
from triton.runtime.errors import OutOfResources
from triton.tools.tensor_descriptor import TensorDescriptor

from longformer_triton.bench.compiled import Variant, launches_of, standing_in
from longformer_triton.kernels.triton_impl import steps
from longformer_triton.kernels.triton_impl.steps import Launch
from longformer_triton.kernels.triton_impl.tuning import Config, NotServedError

VARIANTS = [Variant(), Variant(masks=True, dropout=True), Variant(masks=True, dilation=3), Variant(dtype=torch.float32)]
LAUNCHES = [launch for variant in VARIANTS for launch in launches_of(variant, "sm_90", seq_len=100)]
NUMBERS = st.sampled_from([0, 1, 2, 16, 48, 100, 2**31 - 1, 2**31, 2**31 + 16, -16])
FLOATS = st.sampled_from([0.0, 1.0, 16.0, 0.125, -2.5])
DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.int64])


def choice_of(launch):
    """What Triton compiles and keeps its programs by."""
    _, _, _, _, binder = launch.kernel.device_caches[driver.active.get_current_device()]
    _, specialization, options = binder(**launch.arguments, **launch.config.options())
    return launch.kernel, str(specialization), str(options)


def other_value(draw, value):
    """Something that may stand in the place of an argument."""
    if isinstance(value, TensorDescriptor):
        block = [1 if size == 1 else draw(st.sampled_from([16, 64, 128])) for size in value.block_shape]
        return TensorDescriptor(value.base, [draw(st.integers(1, 99)) for _ in block], value.strides, block)
    if isinstance(value, torch.Tensor):
        return torch.zeros(64, dtype=draw(DTYPES))[draw(st.integers(0, 16)) :]
    return draw(NUMBERS if isinstance(value, int) else FLOATS)


@st.composite
def pairs(draw):
    """Two launches of one kernel of ours that differ in one argument, which is no constant, and maybe in how they are made."""
    launch = draw(st.sampled_from(LAUNCHES))
    names = [
        name
        for (name, value), parameter in zip(launch.arguments.items(), launch.kernel.params, strict=True)
        if not parameter.is_constexpr and value is not None
    ]
    name = draw(st.sampled_from(names))
    config = draw(st.sampled_from([launch.config, Config(64, 64, 8, 2, 128)]))
    one, other = (launch.arguments | {name: other_value(draw, launch.arguments[name])} for _ in range(2))
    return Launch(launch.kernel, 1, one, config), Launch(launch.kernel, 1, other, launch.config)


@pytest.fixture(scope="module", autouse=True)
def on_a_gpu():
    with standing_in("sm_90"):
        yield


@settings(max_examples=400)
@given(pairs())
def test_launches_that_are_alike_to_us_are_alike_to_triton(pair):
    one, other = pair
    if one.compiled_key == other.compiled_key:
        assert choice_of(one) == choice_of(other)


@pytest.mark.parametrize("launch", LAUNCHES[:4], ids=lambda launch: launch.kernel.__name__)
def test_constants_and_what_is_absent_are_seen(launch):
    for parameter in launch.kernel.params:
        changed = 32 if parameter.is_constexpr else None
        if launch.arguments[parameter.name] is not None:
            other = Launch(launch.kernel, 1, launch.arguments | {parameter.name: changed}, launch.config)
            assert (other.compiled_key == launch.compiled_key) == (launch.arguments[parameter.name] is changed)


def test_lengths_share_a_program():
    keys = collections.defaultdict(set)
    for seq_len in (100, 101, 128, 1000):
        for launch in launches_of(Variant(masks=True), "sm_90", seq_len=seq_len):
            keys[launch.kernel.__name__].add(launch.compiled_key)
    # Those that serve windows and global rows, or add and write, have two.
    assert {name: len(found) for name, found in keys.items() if len(found) > 1} == {"prepare_rows": 2, "reduce_partials": 2}


def test_a_program_is_asked_for_once_and_launched_with_the_arguments_in_order(monkeypatch):
    asked, launched = [], []

    class Program:
        def __getitem__(self, grid):
            return lambda *arguments: launched.append((grid, arguments))

    monkeypatch.setattr(steps, "_compiled", {})
    monkeypatch.setattr(torch.cuda, "current_device", itertools.chain([0, 0, 0], [1]).__next__)
    launch = LAUNCHES[0]
    monkeypatch.setattr(
        type(launch.kernel), "run", lambda self, **options: asked.append((self, options["grid"])) or Program(), raising=True
    )
    for _ in range(3):
        Launch(launch.kernel, 7, launch.arguments, launch.config).run()
    assert asked == [(launch.kernel, (7,))]
    assert launched == [((7, 1, 1), tuple(launch.arguments.values()))] * 2
    launch.run()
    assert len(asked) == 2, "another device has programs of its own"


def test_too_little_shared_memory_is_told_with_both_numbers(monkeypatch):
    """As on a card with less than the one that a table was made for."""

    def refuse(self, **options):
        raise OutOfResources(131_072, 101_376, "shared memory")

    monkeypatch.setattr(steps, "_compiled", {})
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    launch = Launch(LAUNCHES[0].kernel, 7, LAUNCHES[0].arguments, Config(128, 64, 8, 3))
    monkeypatch.setattr(type(launch.kernel), "run", refuse)
    said = r"window_forward kernel needs 131072 \(shared memory\) with .*num_stages=3.* has 101376.*bench tune.*'torch'"
    with pytest.raises(NotServedError, match=said):
        launch.run()
    assert not steps._compiled

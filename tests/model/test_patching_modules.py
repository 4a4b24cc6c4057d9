"""What patching does to a model as an object, what it costs in memory, and which models it refuses."""

import copy
import pickle
import sys

import pytest
import torch
from model_cases import SEPARATOR, Texts, ours, theirs
from patching_cases import ALL, batch_for, original
from torch import nn

from longformer_triton import patch_transformers, unpatch_transformers

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
modeling_led = pytest.importorskip("transformers.models.led.modeling_led")
modeling_longformer = pytest.importorskip("transformers.models.longformer.modeling_longformer")
pytestmark = pytest.mark.usefixtures("one_thread")
EACH_FAMILY = pytest.mark.parametrize("name", ["LongformerForMaskedLM", "LEDForConditionalGeneration"])
BARE = pytest.mark.parametrize("name", ["LongformerModel", "LEDModel", "LEDForConditionalGeneration"])


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def encoder_of(model):
    return model.base_model.encoder


def attention_of(model):
    kinds = (modeling_longformer.LongformerSelfAttention, modeling_led.LEDEncoderSelfAttention)
    return next(module for module in model.modules() if isinstance(module, kinds))


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)


def snapshot(model):
    """The class of each module, everything in its ``vars``, and everything in transformers' classes."""
    modules = {path: (type(module), dict(vars(module))) for path, module in model.named_modules()}
    classes = [
        value for room in (modeling_led, modeling_longformer) for value in vars(room).values() if isinstance(value, type)
    ]
    return modules, {kind: dict(vars(kind)) for kind in classes}


def assert_identical(got, expected):
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert got[key] is value, key


@pytest.mark.parametrize("name", ALL)
def test_unpatching_leaves_no_trace(name):
    model = original(name)
    inputs = batch_for(name, Texts(globals_="some", choices=2 if name.endswith("Choice") else 0))
    expected = model(**inputs)[0]
    modules, classes = snapshot(model)
    patch_transformers(patch_transformers(model))
    assert all(type(module).__name__ == modules[path][0].__name__ for path, module in model.named_modules())
    assert any(type(module) is not modules[path][0] for path, module in model.named_modules())
    model(**inputs)
    assert unpatch_transformers(unpatch_transformers(model)) is model
    restored, now = snapshot(model)
    for path, (kind, values) in modules.items():
        assert restored[path][0] is kind
        assert_identical(restored[path][1], values)
    for kind, values in classes.items():
        assert_identical(now[kind], values)
    assert torch.equal(model(**inputs)[0], expected)


@EACH_FAMILY
def test_names_parameters_and_other_models_stay(name):
    model, other = original(name), original(name)
    state = model.state_dict(keep_vars=True)
    patch_transformers(model)
    assert_identical(model.state_dict(keep_vars=True), state)
    for module, untouched in zip(model.modules(), other.modules(), strict=True):
        assert isinstance(module, type(untouched))
        assert type(untouched).__module__.startswith(("transformers.", "torch."))
    attention = type(attention_of(other))
    assert attention.forward.__module__.startswith("transformers.")


@BARE
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"])
def test_copies_compute_with_weights_of_their_own(name, copied):
    """A forward bound to the module it came from would read the original's."""
    model = original(name)
    inputs = batch_for(name, Texts(globals_="some"))
    unpatched = copy.deepcopy(model)
    twin = copied(patch_transformers(model))
    before = model(**inputs)[0]
    with torch.no_grad():
        for parameter, same in zip(twin.parameters(), unpatched.parameters(), strict=True):
            parameter.mul_(0.5)
            same.mul_(0.5)
    assert [type(module) for module in twin.modules()] == [type(module) for module in model.modules()]
    close(twin(**inputs)[0], unpatched(**inputs)[0])
    assert torch.equal(model(**inputs)[0], before)


@BARE
def test_a_pickle_needs_this_package_while_the_model_is_patched_alone(name):
    model = original(name)
    assert b"longformer_triton" in pickle.dumps(patch_transformers(model))
    assert b"longformer_triton" not in pickle.dumps(unpatch_transformers(model))


@BARE
def test_saved_checkpoints_are_the_same_bytes(name, tmp_path):
    model = original(name)
    folders = [tmp_path / "unpatched", tmp_path / "patched"]
    for folder in folders:
        model.save_pretrained(folder)
        patch_transformers(model)
    written = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert "config.json" in written[0]
    assert written[0] == written[1]
    loaded = type(model).from_pretrained(folders[1])
    assert type(encoder_of(loaded)).__module__.startswith("transformers.")
    assert type(loaded).__module__.startswith("transformers.")


def test_a_new_model_of_a_patched_ones_class_is_as_transformers_makes_it():
    model = patch_transformers(original("LongformerModel"))
    assert type(type(model)(model.config)) is transformers.LongformerModel


@pytest.mark.parametrize("name", ["LongformerModel", "LEDModel"])
def test_texts_are_not_padded(name):
    """A hook on a layer sees the text's length; a position table that only just fits serves."""
    sizes = {"max_position_embeddings": 25} if name == "LongformerModel" else {"max_encoder_position_embeddings": 23}
    model = patch_transformers(original(name, **sizes))
    seen = []
    encoder = encoder_of(model)
    layers = encoder.layer if name == "LongformerModel" else encoder.layers
    layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    model(**batch_for(name, Texts(seq_len=23)))
    assert seen == [23]


def largest_allocation(function):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = profile.profiler.kineto_results.events()
    return max(event.nbytes() for event in events if event.name() == "[memory]")


@EACH_FAMILY
def test_nothing_of_n_by_n_elements_is_made(name):
    """Neither as a mask of one byte an element: transformers makes several, for LED always, for Longformer since 5.9."""
    length = 2048
    tables = ["max_encoder_position_embeddings"] if name.startswith("LED") else ["max_position_embeddings"]
    model = original(name, **dict.fromkeys(tables, length + 2))
    inputs = batch_for(name, Texts(batch=1, seq_len=length))

    def run():
        model(**inputs).loss.backward()

    if name.startswith("LED"):
        assert largest_allocation(run) >= length**2
    patch_transformers(model)
    assert largest_allocation(run) < length**2


def masks_of(hidden_states):
    """transformers' own arguments of an attention module: two texts, one with padding, with one and with two global tokens."""
    masked = torch.zeros(hidden_states.shape[:2], dtype=torch.bool)
    masked[0, -5:] = masked[1, -3:] = True
    marked = torch.zeros_like(masked)
    marked[0, 2] = marked[1, 0] = marked[1, 9] = True
    additive = torch.zeros(masked.shape).masked_fill(masked, -1e4).masked_fill(marked, 1e4)
    return {
        "attention_mask": additive,
        "is_index_masked": masked,
        "is_index_global_attn": marked,
        "is_global_attn": True,
    }


@EACH_FAMILY
@pytest.mark.parametrize("has_globals", [True, False])
def test_an_attention_module_takes_and_gives_what_it_did(name, has_globals):
    attention = attention_of(model := original(name))
    hidden_states = torch.randn(2, 24, 12)
    masks = masks_of(hidden_states)
    if not has_globals:
        masks["attention_mask"] = masks["attention_mask"].clamp_max(0)
        masks["is_global_attn"] = False
    expected = attention(hidden_states, **masks, output_attentions=True)
    patch_transformers(model)
    got = attention(hidden_states, **masks, output_attentions=True)
    assert len(got) == len(expected) == 2 + has_globals
    for mine, theirs_ in zip(got, expected, strict=True):
        close(mine, theirs_)


def test_an_encoder_takes_padded_states_and_gives_what_it_did():
    model = original("LongformerModel")
    hidden_states = torch.randn(2, 24, 12)
    options = {"attention_mask": masks_of(hidden_states)["attention_mask"], "padding_len": 3, "output_attentions": True}
    expected = model.encoder(hidden_states, **options)
    got = patch_transformers(model).encoder(hidden_states, **options)
    assert type(model.encoder(hidden_states, **options, return_dict=False)) is tuple
    close(got.last_hidden_state, expected.last_hidden_state)
    for mine, theirs_ in zip(
        got.attentions + got.global_attentions, expected.attentions + expected.global_attentions, strict=True
    ):
        close(mine, theirs_)


@EACH_FAMILY
@pytest.mark.usefixtures("fresh_compiler")
def test_attention_is_one_graph(name):
    attention = attention_of(patch_transformers(original(name)))
    compiled = torch.compile(attention, fullgraph=True, backend="eager", dynamic=True)
    for length in (24, 31):
        hidden_states = torch.randn(2, length, 12)
        close(compiled(hidden_states, **masks_of(hidden_states))[0], attention(hidden_states, **masks_of(hidden_states))[0])


@pytest.mark.parametrize("name", ["LongformerModel", "LEDModel"])
@pytest.mark.usefixtures("fresh_compiler")
def test_an_encoder_is_one_graph_and_patching_is_seen_by_compiled_ones(name):
    model = patch_transformers(original(name))
    encoder = encoder_of(model)
    inputs = {"attention_mask": torch.ones(2, 21)}
    inputs["input_ids" if name == "LEDModel" else "hidden_states"] = (
        torch.full((2, 21), 5) if name == "LEDModel" else torch.randn(2, 21, 12)
    )
    compiled = torch.compile(encoder, fullgraph=True, backend="eager", dynamic=True)
    close(compiled(**inputs)[0], encoder(**inputs)[0])
    unpatch_transformers(model)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(**inputs)


@pytest.mark.extended
@pytest.mark.parametrize("name", ALL)
@pytest.mark.usefixtures("fresh_compiler")
def test_whole_models_are_one_graph(name):
    """With a mask of global tokens: heads that look for separators read them from the device, as unpatched."""
    if name == "LEDForSequenceClassification":
        pytest.skip("its head reads the number of separators from the device, as unpatched")
    model = patch_transformers(original(name))
    inputs = batch_for(name, Texts(batch=3, globals_="some", choices=2 if name.endswith("Choice") else 0))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    close(compiled(**inputs)[0], model(**inputs)[0])


class Doubled(nn.Linear):
    """As an adapter would, something beside weight and bias."""

    def forward(self, states):
        return 2 * super().forward(states)


@pytest.mark.parametrize("projection", ["query", "value", "query_global", "key_global", "value_global"])
def test_projections_that_are_more_than_weight_and_bias_are_called(projection):
    model = original("LongformerModel")
    for layer in model.encoder.layer:
        attention = layer.attention.self
        doubled = Doubled(12, 12)
        doubled.load_state_dict(getattr(attention, projection).state_dict())
        setattr(attention, projection, doubled)
    inputs = batch_for("LongformerModel", Texts())
    expected = model(**inputs)[0]
    close(patch_transformers(model)(**inputs)[0], expected)


def test_max_globals_bounds_their_number():
    model = original("LongformerModel")
    inputs = batch_for("LongformerModel", Texts(padding="none"))
    expected = model(**inputs)
    model.config.max_globals = 3
    got = patch_transformers(model)(**inputs, output_attentions=True)
    close(got.last_hidden_state, expected.last_hidden_state)
    assert got.global_attentions[0].shape[-1] == 3


def nothing_of_longformer():
    return transformers.BertModel(
        transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    )


def half_of_led():
    return original("LEDModel").decoder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: 3, "model: got int, expected transformers' LongformerModel"),
        (lambda: nn.Linear(1, 1), "model: got Linear, expected"),
        (nothing_of_longformer, "model: got BertModel, expected"),
        (half_of_led, "model: got LEDDecoder, which has no encoder"),
        (lambda: nn.Sequential(nn.ReLU(), theirs("LongformerModel")), "got Sequential, expected .* Its 1 is one: pass that"),
        (
            lambda: ours("LongformerForMaskedLM"),
            "LongformerForMaskedLM of longformer_triton, which already runs on these kernels",
        ),
    ],
    ids=["number", "linear", "bert", "led_decoder", "wrapper", "ours"],
)
@pytest.mark.parametrize("function", [patch_transformers, unpatch_transformers])
def test_other_models_are_refused_by_name(function, make, message):
    with pytest.raises(TypeError, match=message):
        function(make())


class OwnEncoder(modeling_longformer.LongformerEncoder):
    """A user's."""


def with_a_subclass(model):
    model.encoder.__class__ = OwnEncoder


def with_another_attention(model):
    model.encoder.layer[1].attention.self = nn.Identity()


def with_hooks(model):
    hooks = pytest.importorskip("accelerate.hooks", reason="accelerate is not installed")
    hooks.add_hook_to_module(model.encoder.layer[0].attention.self, hooks.ModelHook())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_a_subclass, "model.encoder: got OwnEncoder, a subclass of transformers' class"),
        (with_another_attention, "model.encoder: got 2 layers with 1 attention modules"),
        (with_hooks, r"model.encoder.layer.0.attention.self: got LongformerSelfAttention with a forward of its own"),
    ],
    ids=["subclass", "replaced_attention", "accelerate_hooks"],
)
def test_what_would_not_compute_as_before_is_refused_before_anything_changes(change, message):
    model = original("LongformerModel")
    change(model)
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(NotImplementedError, match=message):
        patch_transformers(model)
    assert [type(module) for module in model.modules()] == kinds


def test_an_old_version_is_refused(monkeypatch):
    model = original("LongformerModel")
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "4.55.4")
    with pytest.raises(NotImplementedError, match=r"transformers 4\.55\.4, expected 4\.56 or newer"):
        patch_transformers(model)


def test_separators_stay_where_the_tests_put_them():
    """The premise of comparing LED's classifier: as many separators in each text."""
    ids = batch_for("LEDForSequenceClassification", Texts(batch=3))["input_ids"]
    assert (ids == SEPARATOR).sum(1).tolist() == [1, 1, 1]

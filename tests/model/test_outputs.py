"""The seven output classes: fields of transformers, read by attribute, key, index and as a tuple, and as pytrees."""

import copy
import dataclasses
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_cases import MODELS, Texts, ours
from torch.utils import _pytree as pytree

import longformer_triton

OUTPUTS = [
    longformer_triton.LongformerBaseModelOutput,
    longformer_triton.LongformerBaseModelOutputWithPooling,
    longformer_triton.LongformerMaskedLMOutput,
    longformer_triton.LongformerQuestionAnsweringModelOutput,
    longformer_triton.LongformerSequenceClassifierOutput,
    longformer_triton.LongformerMultipleChoiceModelOutput,
    longformer_triton.LongformerTokenClassifierOutput,
]
RETURNED = dict(
    zip(
        MODELS,
        [
            longformer_triton.LongformerBaseModelOutputWithPooling,
            longformer_triton.LongformerMaskedLMOutput,
            longformer_triton.LongformerSequenceClassifierOutput,
            longformer_triton.LongformerMultipleChoiceModelOutput,
            longformer_triton.LongformerTokenClassifierOutput,
            longformer_triton.LongformerQuestionAnsweringModelOutput,
        ],
        strict=True,
    )
)
each_output = pytest.mark.parametrize("kind", OUTPUTS, ids=lambda kind: kind.__name__)


def content(kind):
    """A value for each field, tuples where models give tuples."""
    values = {}
    for number, field in enumerate(dataclasses.fields(kind)):
        tensor = torch.full((2, 3), float(number))
        values[field.name] = (tensor, tensor + 0.5) if field.name.endswith(("states", "attentions")) else tensor
    return values


@each_output
def test_fields_and_their_order_are_those_of_transformers(kind):
    pytest.importorskip("transformers", reason="transformers is not installed")
    from transformers.models.longformer import modeling_longformer

    expected = dataclasses.fields(getattr(modeling_longformer, kind.__name__))
    assert [field.name for field in dataclasses.fields(kind)] == [field.name for field in expected]


@pytest.mark.parametrize("model", MODELS)
def test_a_model_returns_its_class(model):
    output = ours(model)(**Texts(choices=2 if model.endswith("Choice") else 0).inputs(model))
    assert type(output) is RETURNED[model]


@each_output
@given(data=st.data())
def test_what_is_there_is_read_by_attribute_key_index_and_as_a_tuple(kind, data):
    values = content(kind)
    present = [name for name in values if data.draw(st.booleans(), label=name)]
    output = kind(**{name: values[name] for name in present})
    assert list(output) == list(output.keys()) == present
    assert len(output) == len(present)
    for place, name in enumerate(present):
        assert getattr(output, name) is output[name] is output[place] is output[place - len(present)] is values[name]
        assert name in output
    assert all(got is values[name] for got, name in zip(output.to_tuple(), present, strict=True))
    assert output[1:] == output.to_tuple()[1:]
    assert isinstance(output[:], tuple)
    for name in values.keys() - set(present):
        assert getattr(output, name) is None
        assert name not in output
        assert output.get(name, "nothing") == "nothing"
        with pytest.raises(KeyError, match=name):
            output[name]
    with pytest.raises(IndexError):
        output[len(present)]


def test_a_name_that_is_no_field_is_no_key():
    """Methods and private names are attributes, but no content."""
    output = OUTPUTS[0](torch.ones(1))
    for name in ("to_tuple", "_names", "logits"):
        assert name not in output
        with pytest.raises(KeyError):
            output[name]


def test_numbers_are_places_and_no_keys():
    """What ``in`` finds is what iteration gives; a number past the end is no error there."""
    output = OUTPUTS[0](torch.ones(1))
    assert 0 not in output
    assert 5 not in output


def test_a_changed_field_shows_in_every_way_of_reading():
    output = OUTPUTS[2](torch.ones(()), torch.zeros(2))
    output.loss = changed = output.loss / 4
    assert output[0] is output["loss"] is output.to_tuple()[0] is output.loss is changed
    assert list(output) == ["loss", "logits"]


@each_output
def test_a_mapping_of_fields_makes_the_same_output(kind):
    """Libraries that map a function over a mapping build the result as type(mapping)({...})."""
    values = content(kind)
    rebuilt = kind(dict(kind(**values)))
    assert list(rebuilt) == list(values)
    assert all(rebuilt[name] is values[name] for name in values)
    last = list(values)[-1]
    assert list(kind({last: values[last]})) == [last]


@each_output
@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["flat", "deep", "pickle"]
)
def test_copies_hold_the_same(kind, copied):
    values = content(kind)
    first = next(iter(values))
    del values[first]
    got = copied(kind(**values))
    assert type(got) is kind
    assert getattr(got, first) is None
    assert list(got) == list(values)
    torch.testing.assert_close(got.to_tuple(), tuple(values.values()), rtol=0, atol=0)


@each_output
@given(data=st.data())
def test_a_pytree_has_the_tensors_as_leaves_and_comes_back(kind, data):
    values = {name: value for name, value in content(kind).items() if data.draw(st.booleans(), label=name)}
    output = kind(**values)
    leaves, spec = pytree.tree_flatten(output)
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    assert len(leaves) == sum(len(value) if isinstance(value, tuple) else 1 for value in values.values())
    back = pytree.tree_unflatten(leaves, spec)
    assert type(back) is kind
    assert list(back) == list(values)
    torch.testing.assert_close(back.to_tuple(), output.to_tuple(), rtol=0, atol=0)
    doubled = pytree.tree_map(lambda leaf: 2 * leaf, output)
    for name, value in values.items():
        expected = tuple(2 * part for part in value) if isinstance(value, tuple) else 2 * value
        torch.testing.assert_close(doubled[name], expected, rtol=0, atol=0)


@each_output
def test_pytrees_with_other_fields_have_another_structure(kind):
    values = content(kind)
    whole = pytree.tree_structure(kind(**values))
    del values["attentions"]
    assert pytree.tree_structure(kind(**values)) != whole


@each_output
def test_paths_in_a_pytree_are_names(kind):
    values = content(kind)
    paths = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(kind(**values))[0]]
    expected = []
    for name, value in values.items():
        expected += [f"['{name}'][{place}]" for place in range(len(value))] if isinstance(value, tuple) else [f"['{name}']"]
    assert paths == expected


@each_output
def test_the_structure_of_a_pytree_can_be_written_down(kind):
    """As torch.export does with the outputs of a program."""
    spec = pytree.tree_structure(kind(**content(kind)))
    assert pytree.treespec_loads(pytree.treespec_dumps(spec)) == spec


@pytest.mark.parametrize(
    "leaf",
    [
        lambda tensor: tensor.mean().item(),
        lambda tensor: tensor.numpy(),
        lambda tensor: str(tensor.dtype),
        lambda tensor: {"mean": tensor.mean().item()},
        lambda tensor: [("mean", tensor.mean().item())],
    ],
    ids=["number", "array", "text", "mapping", "pairs"],
)
def test_a_pytree_may_have_anything_as_leaves(leaf):
    """As when outputs are moved to numpy, or each tensor is described."""
    loss, logits = torch.ones(()), torch.zeros(2)
    got = pytree.tree_map(leaf, OUTPUTS[4](loss, logits))
    assert list(got) == ["loss", "logits"]
    assert got.loss == leaf(loss)
    assert got["logits"] is got.logits
    assert str(got.logits) == str(leaf(logits))

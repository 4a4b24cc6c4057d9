"""A start that failed, repaired and started again in the same folder; and checkpoints that a disk has damaged."""

import dataclasses
import json
import shutil

import pytest
import text_cases
from pretraining_cases import assert_same_run, curve, make_texts, options_of, run

from longformer_triton.heads import packing

pytest.importorskip("accelerate", reason="accelerate is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")

LAST = "checkpoints/step-000000012"


@pytest.mark.parametrize("broken", [b"", b"caf\xe9 au lait"], ids=["empty", "not_utf8"])
@pytest.mark.parametrize("place", [0, -1], ids=["first_file", "last_file"])
def test_a_text_that_was_repaired_is_read_by_the_same_command(model, texts, tmp_path, broken, place):
    """With tokens already there of the files before it."""
    copies = [shutil.copy(path, tmp_path / path.name) for path in texts]
    options = options_of(model, copies, tmp_path / "run", max_steps=2)
    good = copies[place].read_bytes()
    # Alone, an empty file is refused; among others it is a text without tokens.
    started = dataclasses.replace(options, files=[copies[place]]) if not broken else options
    copies[place].write_bytes(broken)
    with pytest.raises(ValueError, match="without a single token" if not broken else "expected UTF-8"):
        run(started)
    copies[place].write_bytes(good)
    run(options)
    expected = options_of(model, texts, tmp_path / "undisturbed", max_steps=2)
    run(expected)
    assert_same_run(options.out, expected.out)


def test_options_may_change_until_there_is_a_checkpoint(model, tmp_path):
    """Held-out rows that leave none to learn from; then a learning rate that ended in no number."""
    one = make_texts(tmp_path / "short", 1, 5)
    options = options_of(model, one, tmp_path / "run", max_steps=2)
    with pytest.raises(ValueError, match="which leaves none to learn from"):
        run(options)
    options = dataclasses.replace(options, validation_share=0.0)
    with pytest.raises(FloatingPointError):
        run(dataclasses.replace(options, learning_rate=1e30, max_grad_norm=1e30))
    run(options)
    assert len(curve(options.out)) == 2
    with pytest.raises(ValueError, match=r"a run with other options: learning_rate \(was"):
        run(dataclasses.replace(options, learning_rate=0.02))


def test_texts_that_have_become_tokens_are_another_run(model, texts, tmp_path):
    options = options_of(model, texts, tmp_path / "run", max_steps=2)
    assert run(options, prepare_only=True) is None
    with pytest.raises(ValueError, match=r"a run with other options: files \(was"):
        run(dataclasses.replace(options, files=texts[:1]))
    assert packing.holds_tokens(options.out / "tokens")


@pytest.mark.parametrize("left", [None, 0, 10], ids=["absent", "empty", "cut_off"])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "random_states_0.pkl"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_goes_on(model, texts, whole, tmp_path, name, left):
    options = options_of(model, texts, shutil.copytree(whole, tmp_path / "run"))
    path = options.out / LAST / name
    content = path.read_bytes()
    path.unlink()
    if left is not None:
        path.write_bytes(content[:left])
    with pytest.raises(ValueError, match=rf"out: .*{LAST} cannot be read \(.*: remove it, to go on from an older"):
        run(options)
    assert curve(options.out) == curve(whole)
    shutil.rmtree(path.parent)
    run(options)
    assert_same_run(options.out, whole)


def test_files_before_a_repaired_one_are_not_cut_again(tmp_path, monkeypatch):
    tokenizer = text_cases.tokenizer_of(["fox", "dog", "river"], tmp_path / "tokenizer")
    paths = [tmp_path / f"{number}.jsonl" for number in range(3)]
    for path, text in zip(paths, ["fox dog", "river", "dog"], strict=True):
        path.write_text(json.dumps(text) + "\n")
    good = paths[1].read_bytes()
    paths[1].write_bytes(good + b"\xff\n")
    with pytest.raises(ValueError, match=r"1\.jsonl:2: got the byte 0xff"):
        packing.tokenized(tokenizer, paths, tmp_path / "tokens")
    paths[1].write_bytes(good)
    cut, encode = [], tokenizer._called
    with monkeypatch.context() as patch:
        patch.setattr(
            tokenizer, "_called", lambda texts, *rest, **options: (cut.extend(texts), encode(texts, *rest, **options))[1]
        )
        found = packing.tokenized(tokenizer, paths, tmp_path / "tokens").tolist()
    assert cut == ["river", "dog"]
    assert found == packing.tokenized(tokenizer, paths, tmp_path / "anew").tolist()


@pytest.mark.parametrize("changed", ["tokenizer", "form"])
def test_half_done_tokens_of_another_tokenizer_or_form_are_refused(tmp_path, changed):
    tokenizer = text_cases.tokenizer_of(["fox", "dog"], tmp_path / "tokenizer")
    (tmp_path / "good.txt").write_text("fox dog\n")
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    paths = [tmp_path / "good.txt", tmp_path / "bad.txt"]
    with pytest.raises(ValueError, match="expected UTF-8"):
        packing.tokenized(tokenizer, paths, tmp_path / "tokens")
    other = text_cases.tokenizer_of(["wolf"], tmp_path / "other") if changed == "tokenizer" else tokenizer
    with pytest.raises(ValueError, match=rf"tokens of other texts \({changed} differ\)"):
        packing.tokenized(other, paths, tmp_path / "tokens", "lines" if changed == "form" else None)

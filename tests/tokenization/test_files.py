"""Files: what transformers writes loads here, what is written here loads there, and a failed save changes nothing."""

import json
import os
import pickle
import shutil

import pytest
from tokenizers import AddedToken, Tokenizer, models, processors

from longformer_triton.tokenization import (
    LongformerTokenizer,
    MissingTokenizerFileError,
    TokenizerFileError,
    files,
)

TEXTS = ["The <mask> fox, it's naïve", "<ent>two <new> words[X] </s>", " [CLS] fox<pad>"]
FILES = {"vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
CHANGES = {
    "nothing": {},
    "settings": {
        "add_prefix_space": True,
        "trim_offsets": False,
        "model_max_length": 4096,
        "padding_side": "left",
        "truncation_side": "left",
        "clean_up_tokenization_spaces": True,
        "split_special_tokens": True,
        "model_input_names": ["input_ids", "token_type_ids"],
    },
    "special tokens": {
        "cls_token": "[CLS]",
        "mask_token": AddedToken("[X]", rstrip=True),
        "additional_special_tokens": ["<ent>"],
    },
}


def contents(tokenizer):
    return json.loads(tokenizer.backend_tokenizer.to_str())


def described(tokenizer):
    """The special tokens with all their settings but ``special``, which transformers sets for some of them."""

    def one(token):
        return {**token.__getstate__(), "special": None} if isinstance(token, AddedToken) else token

    tokens = tokenizer.special_tokens_map_extended.items()
    return {name: [one(token) for token in value] if isinstance(value, list) else one(value) for name, value in tokens}


def assert_same_tokenizer(ours, theirs):
    assert contents(ours) == contents(theirs)
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert described(ours) == described(theirs)
    assert ours.all_special_tokens == theirs.all_special_tokens
    assert ours.all_special_ids == theirs.all_special_ids
    assert ours.added_tokens_encoder == theirs.added_tokens_encoder
    assert ours.model_max_length == theirs.model_max_length
    assert (ours.padding_side, ours.truncation_side) == (theirs.padding_side, theirs.truncation_side)
    assert (len(ours), ours.vocab_size, ours.get_vocab()) == (len(theirs), theirs.vocab_size, theirs.get_vocab())
    for text in TEXTS:
        got, expected = ours(text, return_offsets_mapping=True), theirs(text, return_offsets_mapping=True)
        assert dict(got) == dict(expected)
        for skip in (True, False):
            assert ours.decode(got["input_ids"], skip_special_tokens=skip) == theirs.decode(
                got["input_ids"], skip_special_tokens=skip
            )


def read(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("legacy", [None, True, False], ids=["all files", "vocabulary files", "tokenizer.json"])
@pytest.mark.parametrize("changes", CHANGES)
def test_tokenizers_go_to_transformers_and_back(changes, legacy, small, transformers, tmp_path):
    arguments = CHANGES[changes]
    ours = LongformerTokenizer.from_pretrained(small, **arguments)
    theirs = transformers.LongformerTokenizerFast.from_pretrained(small, **arguments)
    for tokenizer in (ours, theirs):
        tokenizer.add_tokens(["<new>", AddedToken("two", lstrip=True)])
        tokenizer.add_special_tokens({"additional_special_tokens": ["<ent>", "<s2>"], "unk_token": "<unknown>"})
    assert_same_tokenizer(ours, theirs)
    ours.save_pretrained(tmp_path / "ours", legacy_format=legacy)
    theirs.save_pretrained(tmp_path / "theirs", legacy_format=legacy)
    for folder in ("ours", "theirs"):
        ours = LongformerTokenizer.from_pretrained(tmp_path / folder)
        theirs = transformers.LongformerTokenizerFast.from_pretrained(tmp_path / folder)
        assert_same_tokenizer(ours, theirs)
        slow = transformers.LongformerTokenizer.from_pretrained(tmp_path / folder) if legacy is not False else None
        assert slow is None or slow.all_special_ids == ours.all_special_ids
    if not arguments:
        assert read(tmp_path / "ours") == read(tmp_path / "theirs")


def test_the_files_of_roberta_make_the_same_tokenizer(assets, transformers, tmp_path):
    folder = assets / "roberta-tokenizer"
    ours, theirs = LongformerTokenizer.from_pretrained(folder), transformers.LongformerTokenizerFast.from_pretrained(folder)
    assert_same_tokenizer(ours, theirs)
    assert (len(ours), ours.vocab_size) == (50265, 50265)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    assert read(tmp_path / "ours") == read(tmp_path / "theirs")


def test_auto_tokenizer_finds_the_class(small, transformers, tmp_path):
    LongformerTokenizer.from_pretrained(small).save_pretrained(tmp_path)
    assert isinstance(transformers.AutoTokenizer.from_pretrained(tmp_path), transformers.LongformerTokenizerFast)


def test_older_checkpoints_keep_their_tokens_in_files_of_their_own(small, transformers, tmp_path):
    shutil.copytree(small, tmp_path, dirs_exist_ok=True)
    size = len(LongformerTokenizer.from_pretrained(small))
    special = {
        "mask_token": {"content": "<mask>", "lstrip": True, "rstrip": True, "normalized": False, "single_word": False},
        "additional_special_tokens": ["<ent>"],
    }
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<ent>": size, "<new>": size + 1}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"max_len": 512, "do_lower_case": False}))
    ours = LongformerTokenizer.from_pretrained(tmp_path)
    assert_same_tokenizer(ours, transformers.LongformerTokenizerFast.from_pretrained(tmp_path))
    assert ours.model_max_length == 512
    ours.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())["do_lower_case"] is False


def test_single_files_and_objects_make_the_same(small, transformers, tmp_path):
    ours = LongformerTokenizer(small / "vocab.json", small / "merges.txt")
    assert_same_tokenizer(ours, transformers.LongformerTokenizerFast(str(small / "vocab.json"), str(small / "merges.txt")))
    (path,) = [path for path in ours.save_pretrained(tmp_path) if path.endswith("tokenizer.json")]
    assert contents(LongformerTokenizer(tokenizer_file=path)) == contents(ours)
    assert contents(LongformerTokenizer(tokenizer_object=ours.backend_tokenizer)) == contents(ours)
    spaced = {"add_prefix_space": True, "trim_offsets": False}
    again, theirs = (
        LongformerTokenizer(tokenizer_file=path, **spaced),
        transformers.LongformerTokenizerFast(tokenizer_file=path, **spaced),
    )
    assert_same_tokenizer(again, theirs)


def test_a_tokenizer_with_truncation_in_its_file_does_not_truncate_by_itself(small, tmp_path):
    plain = LongformerTokenizer.from_pretrained(small)
    base = Tokenizer.from_str(plain.backend_tokenizer.to_str())
    base.enable_truncation(5)
    base.enable_padding(length=9)
    base.save(str(tmp_path / "tokenizer.json"))
    for text in ("fox", "the quick brown fox jumps over it"):
        assert LongformerTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == plain(text)["input_ids"]


@pytest.mark.parametrize("stored", [{}, {"padding_side": "right"}], ids=["tokenizer_json", "configuration"])
def test_sides_are_those_of_the_file_where_the_configuration_has_none(stored, small, transformers, tmp_path):
    """transformers leaves a side that was set later to tokenizer.json alone."""
    plain = transformers.LongformerTokenizerFast.from_pretrained(small)
    plain.padding_side = plain.truncation_side = "left"
    plain(["fox", "the quick brown fox"], padding=True, truncation=True, max_length=4)
    plain.save_pretrained(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **stored}))
    ours, theirs = (
        kind.from_pretrained(tmp_path, use_fast=True) for kind in (LongformerTokenizer, transformers.LongformerTokenizerFast)
    )
    assert (ours.padding_side, ours.truncation_side) == (theirs.padding_side, theirs.truncation_side)
    assert ours.truncation_side == "left"


def test_the_template_is_made_whatever_its_arguments_are_called(small, monkeypatch, tmp_path):
    """tokenizers 0.23 has renamed one."""
    theirs = processors.RobertaProcessing

    def renamed(sep, cls_token, trim_offsets=True, add_prefix_space=True):
        return theirs(sep, cls_token, trim_offsets=trim_offsets, add_prefix_space=add_prefix_space)

    LongformerTokenizer.from_pretrained(small).save_pretrained(tmp_path, legacy_format=False)
    expected = [LongformerTokenizer.from_pretrained(folder)(" fox")["input_ids"] for folder in (small, tmp_path)]
    monkeypatch.setattr(processors, "RobertaProcessing", renamed)
    assert [LongformerTokenizer.from_pretrained(folder)(" fox")["input_ids"] for folder in (small, tmp_path)] == expected
    for folder in (small, tmp_path):
        spaced = LongformerTokenizer.from_pretrained(folder, add_prefix_space=True, trim_offsets=False)
        assert spaced("fox")["input_ids"] == expected[0]


def test_copies_are_tokenizers_of_their_own(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert contents(copy) == contents(tokenizer)
    copy.add_tokens("<new>")
    assert len(copy) == len(tokenizer) + 1


def test_names_get_a_prefix(tokenizer, tmp_path):
    written = tokenizer.save_pretrained(tmp_path, filename_prefix="mine")
    assert {path.name for path in tmp_path.iterdir()} == {f"mine-{name}" for name in FILES}
    assert sorted(written) == sorted(str(path) for path in tmp_path.iterdir())
    assert tokenizer.save_vocabulary(tmp_path) == (str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))


def test_saving_leaves_no_file_that_contradicts(tokenizer, tmp_path):
    """tokenizer.json would be read instead of newer vocabulary files."""
    larger = pickle.loads(pickle.dumps(tokenizer))
    larger.add_tokens("<new>")
    larger.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES | {"added_tokens.json"}
    tokenizer.save_pretrained(tmp_path, legacy_format=True)
    assert len(LongformerTokenizer.from_pretrained(tmp_path)) == len(tokenizer)
    assert {path.name for path in tmp_path.iterdir()} == FILES - {"tokenizer.json"}


@pytest.mark.parametrize("there", [True, False], ids=["old files", "no files"])
@pytest.mark.parametrize(("moment", "number"), [("write", 3), ("exchange", 1), ("exchange", 3), ("exchange", 6)])
def test_a_failed_save_changes_nothing(moment, number, there, tokenizer, tmp_path, monkeypatch):
    if there:
        tokenizer.save_pretrained(tmp_path)
    before = read(tmp_path)
    tokenizer.add_tokens("<new>")
    calls = []

    def fail(original):
        def call(path, *rest):
            if path.parent == tmp_path:
                calls.append(path)
                if len(calls) == number:
                    raise OSError("No space left on device")
            return original(path, *rest)

        return call

    if moment == "write":
        monkeypatch.setattr(files, "_flush", fail(files._flush))
    else:
        monkeypatch.setattr(type(tmp_path), "replace", fail(type(tmp_path).replace))
    with pytest.raises(OSError, match="No space left"):
        tokenizer.save_pretrained(tmp_path)
    monkeypatch.undo()
    assert read(tmp_path) == before


def test_arguments_win_over_files(small, tmp_path):
    made = LongformerTokenizer.from_pretrained(small, model_max_length=64, add_prefix_space=True, cls_token="</s>")
    made.save_pretrained(tmp_path)
    assert LongformerTokenizer.from_pretrained(tmp_path).model_max_length == 64
    again = LongformerTokenizer.from_pretrained(tmp_path, model_max_length=32, add_prefix_space=False, cls_token="<s>")
    assert (again.model_max_length, again.add_prefix_space, again.cls_token) == (32, False, "<s>")
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_width'"):
        LongformerTokenizer.from_pretrained(tmp_path, max_width=3)


def test_options_of_transformers_that_ask_for_nothing_are_accepted(small, tmp_path):
    tokenizer = LongformerTokenizer.from_pretrained(small, proxies=None, resume_download=False, trust_remote_code=False)
    assert tokenizer.save_pretrained(tmp_path / "saved", push_to_hub=False, repo_id=None, token="secret")
    LongformerTokenizer.from_pretrained(tmp_path / "saved")
    with pytest.raises(NotImplementedError, match=r"^proxies: got \{'http': ''\}, .*: load a directory"):
        LongformerTokenizer.from_pretrained(small, proxies={"http": ""})
    with pytest.raises(NotImplementedError, match=r"^push_to_hub: got True, .*upload_folder"):
        tokenizer.save_pretrained(tmp_path / "refused", push_to_hub=True)
    with pytest.raises(TypeError, match=r"^push_to_hubb: got an unexpected argument"):
        tokenizer.save_pretrained(tmp_path / "refused", push_to_hubb=False)
    assert not (tmp_path / "refused").exists()


def test_file_systems_without_second_names_get_copies(tokenizer, tmp_path, monkeypatch):
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(OSError("not supported")))
    tokenizer.add_tokens("<new>")
    tokenizer.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES | {"added_tokens.json"}


def broken(folder, case):
    """A directory, or a path, that holds no tokenizer."""
    if case == "no directory":
        return folder / "none" / "there" / "is"
    if case == "a file":
        return folder / "vocab.json"
    if case == "no merges":
        (folder / "merges.txt").unlink()
    if case == "damaged vocabulary":
        (folder / "vocab.json").write_text('{"a": ')
    if case == "damaged merges":
        (folder / "merges.txt").write_text("#version: 0.2\na b c d\n")
    if case == "damaged configuration":
        (folder / "tokenizer_config.json").write_text("{")
    if case == "another configuration":
        (folder / "tokenizer_config.json").write_text("[1]")
    if case == "damaged tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    if case == "another tokenizer":
        Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no directory", "no such directory"),
        ("a file", r"is a file, expected the directory that holds vocab\.json"),
        ("no merges", r"holds no tokenizer\.json, and no merges\.txt"),
        ("damaged vocabulary", "cannot be read as byte-level BPE"),
        ("damaged merges", "cannot be read as byte-level BPE"),
        ("damaged configuration", r"tokenizer_config\.json: is no JSON"),
        ("another configuration", "holds a list, expected a JSON object"),
        ("damaged tokenizer", r"tokenizer_file: .*tokenizer\.json cannot be read"),
        (
            "another tokenizer",
            r"tokenizer_file: .*tokenizer\.json holds a WordLevel model with a NoneType decoder, expected byte-level BPE",
        ),
    ],
)
def test_what_is_no_tokenizer_is_refused_by_name(case, message, small, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(small, folder)
    with pytest.raises(ValueError, match=message):
        LongformerTokenizer.from_pretrained(broken(folder, case))


def test_missing_files_are_file_not_found_errors_too(tmp_path):
    with pytest.raises(FileNotFoundError):
        LongformerTokenizer.from_pretrained(tmp_path)
    assert issubclass(MissingTokenizerFileError, TokenizerFileError)
    with pytest.raises(TypeError, match="pretrained_model_name_or_path: got None"):
        LongformerTokenizer.from_pretrained(None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "vocab_file, merges_file: got none, expected both, or tokenizer_file"),
        ({"errors": "shrug"}, "errors: got 'shrug'"),
        ({"padding_side": "up"}, "padding_side: got 'up'"),
        ({"truncation_side": None}, "truncation_side: got None"),
    ],
    ids=["no files", "errors", "padding side", "truncation side"],
)
def test_arguments_of_the_class_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        LongformerTokenizer(**arguments)


def test_a_name_is_fetched_from_the_hub(small, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options))
        return str(small)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    tokenizer = LongformerTokenizer.from_pretrained("allenai/longformer-base-4096", revision="main", local_files_only=True)
    assert tokenizer.name_or_path == "allenai/longformer-base-4096"
    ((name, options),) = asked
    assert name == "allenai/longformer-base-4096"
    assert set(options["allow_patterns"]) == FILES | {"added_tokens.json"}
    assert (options["revision"], options["local_files_only"]) == ("main", True)
    monkeypatch.setattr(hub, "snapshot_download", lambda *args, **options: (_ for _ in ()).throw(OSError("offline")))
    with pytest.raises(MissingTokenizerFileError, match="the hub gave none: offline"):
        LongformerTokenizer.from_pretrained("allenai/longformer-base-4096")

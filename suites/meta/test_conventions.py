"""What is read of a release's words about texts, from files of every make."""

import json
from pathlib import Path

import pytest

from fixtures import conventions
from fixtures.bad_input import BadInput
from fixtures.judgement import Unverified
from fixtures.oracles.chats import rendered

BEGIN, WORDS = 0, {"<s>": 0, "Is": 1, "it": 2, "so": 3, "text": 4}


@pytest.fixture
def release(tmp_path):
    """A folder with a tokenizer of five words, which begins every text and cuts it to two."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    made = Tokenizer(models.WordLevel(WORDS, unk_token="<s>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BEGIN)])
    made.enable_truncation(2)
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def say(folder, name, **told):
    (folder / name).write_text(json.dumps(told), encoding="utf-8")


@pytest.mark.parametrize(
    ("ids", "parted"), [([1, 2, 3], ""), ([1, 2], "[] for [3], behind 2"), ([1, 3, 3], "[3, 3] for [2, 3], behind 1")]
)
def test_a_folders_tokens_are_all_of_a_text(release, ids, parted):
    assert conventions.parted(release, "Is it so", ids) == parted


@pytest.mark.parametrize(
    ("told", "ways"),
    [
        ({}, [[BEGIN]]),
        ({"add_bos_token": None}, [[BEGIN]]),
        ({"add_bos_token": True}, [[BEGIN]]),
        ({"add_bos_token": False}, [[BEGIN], []]),  # it contradicts its tokenizer
    ],
    ids=["no word", "null", "yes", "no"],
)
def test_a_folder_begins_texts_as_its_tokenizer_does(release, told, ways):
    say(release, "tokenizer_config.json", **told)

    assert conventions.beginnings(release) == ways


@pytest.mark.parametrize("named", ["<s>", {"content": "<s>"}], ids=["name", "token"])
def test_a_folder_whose_tokenizer_does_not_begin_what_it_says_it_begins_may_do_either(release, named):
    said = json.loads((release / "tokenizer.json").read_text(encoding="utf-8"))
    say(release, "tokenizer.json", **said | {"post_processor": None})
    say(release, "tokenizer_config.json", add_bos_token=True, bos_token=named)

    assert conventions.beginnings(release) == [[], [BEGIN]]


@pytest.mark.parametrize(
    ("fields", "ways"),
    [
        ({"bos_token_id": 5, "add_bos_token": True}, [[5]]),
        ({"bos_token_id": 5, "add_bos_token": False}, [[]]),
        ({"bos_token_id": 5}, [[], [5]]),
        ({}, [[], []]),
    ],
    ids=["yes", "no", "no word", "no token"],
)
def test_a_gguf_file_says_whether_texts_are_begun(monkeypatch, fields, ways):
    monkeypatch.setattr(conventions, "_metadata", lambda path: fields)

    assert conventions.beginnings(Path("model.gguf")) == ways


@pytest.mark.parametrize(
    ("whole", "found"), [([9, 9, 4, 5], [9, 9]), ([9, 4, 5, 8], [9]), ([4, 5, 8], []), ([7], [])], ids=str
)
def test_what_stands_before_a_text_is_told_from_what_stands_behind(whole, found):
    assert conventions.before(lambda special: whole if special else [4, 5]) == found


def test_generate_goes_by_the_config_where_there_is_no_word_of_it(release):
    say(release, "config.json", eos_token_id=[3, 1], bos_token_id=None, vocab_size=5)

    assert conventions.generation(release) == {"eos_token_id": [3, 1]}
    assert conventions.ends(release) == {1, 3}


def test_generate_goes_by_a_generation_config_alone(release):
    say(release, "config.json", eos_token_id=1)
    say(release, "generation_config.json", eos_token_id=3, top_k=None, top_p=0.9, transformers_version="5")

    assert conventions.generation(release) == {"eos_token_id": 3, "top_p": 0.9}


def test_a_generation_config_that_is_cut_is_bad_input(release):
    (release / "generation_config.json").write_text('{"eos_token_id": [1,', encoding="utf-8")

    with pytest.raises(BadInput, match=r"generation_config\.json cannot be read .* fetch it again"):
        conventions.generation(release)


@pytest.mark.parametrize(
    ("fields", "spelled"),
    [
        ({"model": "gpt2", "tokens": ["Is", "Ġit", "Ċ", "Ã", "©"]}, "Is it\né"),
        ({"model": "llama", "tokens": ["▁Is", "▁it", "<0x0A>", "<0xC3>", "<0xA9>"]}, "Is it\né"),
        (
            {"model": "llama", "add_space_prefix": False, "tokens": ["Is", "▁it", "<0x0A>", "<0xC3>", "<0xA9>"]},
            "Is it\né",
        ),
    ],
    ids=["bytes", "pieces", "pieces, no space before"],
)
def test_tokens_of_a_gguf_file_spell_their_text(fields, spelled):
    assert conventions._spelled(fields, [0, 1, 2, 3, 4]) == spelled


@pytest.mark.parametrize(("pre", "parted"), [("qwen2", ""), ("gpt-2", "'\u00e9' for 'e\u0301', behind 0")])
def test_an_accent_may_be_composed_where_a_family_does_it(monkeypatch, pre, parted):
    monkeypatch.setattr(conventions, "_metadata", lambda path: {"model": "gpt2", "pre": pre, "tokens": ["Ã", "©"]})

    assert conventions.parted(Path("model.gguf"), "e\u0301", [0, 1]) == parted


@pytest.mark.parametrize("template", ["", "{{ raise_exception('roles must alternate') }}"], ids=["none", "refuses"])
def test_a_template_that_writes_no_chat_of_two_ends_nothing(release, template):
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(release / "tokenizer.json"), chat_template=template or None)

    assert conventions.turn_ends(tokenizer) == set()
    assert conventions.chat(tokenizer) == ([], [])


def test_the_end_of_a_turn_is_the_token_behind_an_answer(release):
    from transformers import PreTrainedTokenizerFast

    template = "{% for m in messages %}{{ m['content'] + '<s> it' }}{% endfor %}"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(release / "tokenizer.json"), bos_token="<s>", chat_template=template
    )

    assert conventions.turn_ends(tokenizer) == {BEGIN}


@pytest.mark.parametrize(
    ("kind", "said"),
    [("gpt2", {"merges": ["b c", "a b", "Ġ a"]}), ("llama", {"scores": [-9, -9, -9, -9, -2, -1, -3]})],
    ids=["merges", "scores"],
)
def test_the_pair_that_was_learned_first_is_joined_first(monkeypatch, kind, said):
    space = conventions.SPACE[kind]
    tokens = [space, "a", "b", "c", "ab", "bc", f"{space}a"]
    monkeypatch.setattr(conventions, "_metadata", lambda path: {"model": kind, "tokens": tokens, **said})

    found = conventions.words(Path("model.gguf"), ["abc", "ab"])

    spelled = {word: [[tokens[n] for n in way] for way in ways] for word, ways in found.items()}
    assert spelled == {"abc": [[f"{space}a", "bc"]], "ab": [[space, "ab"]]}


def test_a_word_that_is_a_token_may_be_looked_up_whole(monkeypatch):
    told = {"model": "gpt2", "tokens": ["Ġ", "a", "b", "ab", "Ġab"], "merges": ["a b"]}
    monkeypatch.setattr(conventions, "_metadata", lambda path: told)

    assert conventions.words(Path("model.gguf"), ["ab"]) == {"ab": [[0, 3], [4]]}


@pytest.mark.parametrize(
    ("kind", "told"),
    [("rwkv", "tokens of the kind 'rwkv'"), ("gpt2", "neither merges nor scores")],
    ids=["kind", "cut"],
)
def test_what_a_gguf_file_does_not_say_of_words_is_not_guessed_at(monkeypatch, kind, told):
    monkeypatch.setattr(conventions, "_metadata", lambda path: {"model": kind, "tokens": []})

    with pytest.raises(Unverified, match=told):
        conventions.words(Path("model.gguf"), ["a"])


def test_transformers_reads_words_of_sentencepiece_as_its_scores_say(tmp_path):
    """The one kind of GGUF file that no model at hand is of."""
    import gguf
    from transformers import AutoTokenizer

    letters, joined = "▁abcd", {"ab": -1.0, "▁a": -2.0, "cd": -3.0, "▁ab": -4.0, "abcd": -5.0, "bc": -6.0}
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *joined, *letters]
    writer = gguf.GGUFWriter(tmp_path / "pieces.gguf", "llama")
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_embedding_length(8)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([joined.get(token, -100.0) for token in tokens])
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (len(joined) + len(letters))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path), gguf_file="pieces.gguf")
    first = tokenizer("a", add_special_tokens=False).input_ids

    ways = conventions.words(tmp_path / "pieces.gguf", ["a", "ab", "abc", "abcd", "bcd", "dcba"])

    for word, found in ways.items():
        assert tokenizer(f"a {word}", add_special_tokens=False).input_ids in [first + way for way in found], word
    assert [tokens[n] for n in ways["abcd"][0]] == ["▁ab", "cd"]
    for text in ("a abcd", "  ab\u00bd", "cd "):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == conventions.read(tmp_path / "pieces.gguf", ids), text
    for token, number in conventions.special(tmp_path / "pieces.gguf").items():
        assert tokenizer(f"a{token}b", add_special_tokens=False).input_ids.count(number) == 1, token


ASKS = (
    "{% for m in messages %}\n    {{ bos_token + m['role'] | tojson }}\n{% endfor %}"
    "{% if add_generation_prompt %}&{% endif %}"
)


def chatting(release, template):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_file=str(release / "tokenizer.json"), bos_token="<s>", chat_template=template
    )


@pytest.mark.parametrize("kind", ["file", "word", "one of several"])
def test_a_folders_chats_are_written_by_its_own_template(release, kind):
    told = {"word": ASKS, "one of several": [{"name": "default", "template": ASKS}, {"name": "rag", "template": "-"}]}
    say(release, "tokenizer_config.json", bos_token={"content": "<s>"}, chat_template=told.get(kind, "another"))
    if kind == "file":
        (release / "chat_template.jinja").write_text(ASKS, encoding="utf-8")

    chats = conventions.chats(release, chatting(release, ASKS))

    assert chats["a system message, to be answered"] == ('    <s>"system"\n    <s>"user"\n&',) * 2
    assert chats["one turn, ended"] == ('    <s>"user"\n',) * 2
    assert all(found == wanted for found, wanted in chats.values())
    assert all(found != wanted for found, wanted in conventions.chats(release, chatting(release, "!")).values())
    assert all(found == "" for found, _ in conventions.chats(release, chatting(release, None)).values())


def test_a_folder_without_a_template_writes_no_chats(release):
    assert conventions.chats(release, chatting(release, "{{ messages }}")) == {}


@pytest.mark.parametrize(
    ("template", "written"),
    [
        ("{{ raise_exception('no') }}", ""),
        ("{% for m in messages %}{% break %}{% endfor %}{{ strftime_now('%%') }}", "%"),
        ("{%- generation -%} a {%- endgeneration %}{% if tools is not none %}b{% endif %}", "a"),
        ("{{ messages[0] | tojson(indent=1) }}", '{\n "role": "<é>"\n}'),
    ],
    ids=["refuses", "loops and clocks", "marks of an answer", "JSON"],
)
def test_a_template_may_use_what_transformers_documents(template, written):
    assert rendered(template, [{"role": "<é>"}]) == written


def test_special_tokens_of_a_folder_are_those_that_were_added(release):
    from tokenizers import AddedToken, Tokenizer

    made = Tokenizer.from_file(str(release / "tokenizer.json"))
    made.add_special_tokens(["<turn>"])
    made.add_tokens([AddedToken("<think>"), AddedToken("whole", single_word=True)])
    made.save(str(release / "tokenizer.json"))

    assert conventions.special(release) == {"<turn>": 5, "<think>": 6}


def test_special_tokens_of_a_gguf_file_are_of_control_or_a_users_own(monkeypatch):
    fields = {"tokens": ["<s>", "a", "<think>", "\n\n", "▁▁", "<0x0A>"], "token_type": [3, 1, 4, 4, 4, 6]}
    monkeypatch.setattr(conventions, "_metadata", lambda path: fields)

    assert conventions.special(Path("model.gguf")) == {"<s>": 0, "<think>": 2}


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("gpt-2", ["It", "'s", "Ġ(", "x", "):", "Ċ", "Ċ", "1234"]),
        ("smollm", ["It", "'s", "Ġ(", "x", "):", "ĊĊ", "1", "2", "3", "4"]),
        ("llama-bpe", ["It", "'s", "Ġ(", "x", "):ĊĊ", "123", "4"]),
        ("qwen2", ["It", "'s", "Ġ(", "x", "):ĊĊ", "1", "2", "3", "4"]),
    ],
)
def test_a_text_is_cut_by_the_pattern_that_a_gguf_file_names(monkeypatch, name, cut):
    letters = sorted(set("".join(cut)))
    merges = [f"{part[:at]} {part[at]}" for part in cut for at in range(1, len(part))]
    tokens = list(dict.fromkeys([*letters, *(merge.replace(" ", "") for merge in merges)]))
    told = {"model": "gpt2", "pre": name, "tokens": tokens, "merges": merges}
    monkeypatch.setattr(conventions, "_metadata", lambda path: told)

    [(one, other)] = conventions.cut(Path("model.gguf"), ["It's (x):\n\n1234"]).values()

    assert one == other
    assert [tokens[token] for token in one] == cut


@pytest.mark.parametrize("fields", [{"model": "llama", "pre": "default"}, {"model": "gpt2"}], ids=["kind", "no name"])
def test_a_way_to_cut_that_is_not_known_is_not_judged(monkeypatch, fields):
    monkeypatch.setattr(conventions, "_metadata", lambda path: fields)

    assert conventions.cut(Path("model.gguf"), ["a"]) == {}


def test_a_folders_tokens_are_read_by_its_own_decoder(release):
    assert conventions.read(release, [1, 2, 3]) == "Is it so"
    assert not conventions.tidied(release)
    say(release, "tokenizer_config.json", clean_up_tokenization_spaces=True)
    assert conventions.tidied(release)

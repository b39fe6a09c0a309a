"""Who reads whom, in which order, and what is refused."""

from __future__ import annotations

import pytest

from verl_mtgrpo.errors import ConfigError
from verl_mtgrpo.roles import RolesSettings, read_cast
from verl_mtgrpo.roles.plan import asked_of, fork_at
from verl_mtgrpo.roles.prompts import Said, fill, names_in, passed_on, question_of

CHAIN = {"rewriter": {}, "reranker": {}, "answerer": {}}


def cast(names=CHAIN, **settings):
    return read_cast(RolesSettings(names=names, **settings))


def test_a_chain_reads_the_role_before_it():
    found = cast()
    assert found.names == ["rewriter", "reranker", "answerer"]
    assert found.inputs == {"rewriter": [], "reranker": ["rewriter"], "answerer": ["reranker"]}
    assert (found.scored, found.answers) == (["answerer"], "answerer")
    assert found.prompts["reranker"] == "{question}\n\n{rewriter}"


def test_next_orders_a_chain_and_all_reads_everybody():
    found = cast({"b": {"sees": "all"}, "a": {"next": ["b"]}}, answers="b")
    assert found.names == ["a", "b"]
    assert found.prompts["b"] == "{question}\n\na: {a}"


def test_a_graph_runs_each_role_after_those_it_follows():
    names = {"end": {}, "left": {"next": ["end"]}, "start": {"next": ["left", "right"]}, "right": {"next": ["end"]}}
    found = cast(names, order="graph", answers="end")
    assert found.names == ["start", "left", "right", "end"]
    assert found.inputs["end"] == ["left", "right"]


def test_the_role_that_answers_speaks_last():
    names = {"start": {"next": ["answerer", "critic"]}, "answerer": {}, "critic": {}}
    found = cast(names, order="graph", answers="answerer")
    assert found.scored == ["answerer", "critic"]
    assert found.speaking == ["start", "critic", "answerer"]


def test_a_file_holds_the_roles_and_single_keys_win(tmp_path):
    path = tmp_path / "roles.yaml"
    path.write_text("order: alternate\nrounds: 4\nfinish: DONE\nnames:\n  meta: {system: You plan.}\n  reasoner: {}\n")
    found = read_cast(RolesSettings(file=str(path), rounds=2))
    assert (found.settings.rounds, found.settings.finish, found.talks) == (2, "DONE", True)
    assert found.roles["meta"].system == "You plan."
    assert (found.scored, found.finisher) == (["reasoner"], "meta")
    with pytest.raises(ConfigError, match=r"gone.yaml cannot be read: FileNotFoundError"):
        read_cast(RolesSettings(file=str(tmp_path / "gone.yaml")))


def file_of(tmp_path, text):
    (tmp_path / "roles.yaml").write_text(text)
    return str(tmp_path / "roles.yaml")


GROUP = {
    **{"order": "alternate", "finish": "[FINISH]", "finish_role": "hand", "unfinished": "zero"},
    "names": {"boss": {"system": "A"}, "hand": {}},
}


def test_a_file_wins_over_the_config_group_and_loses_to_what_is_set_beside_both(tmp_path):
    file = file_of(tmp_path, "finish: DONE\nunfinished: score\nnames: {boss: {prompt: '{question}'}, pair: {}}\n")
    found = read_cast(RolesSettings(**GROUP, file=file), RolesSettings(**GROUP))
    assert (found.names, found.talks) == (["boss", "pair"], True), "the file's roles, the group's order"
    assert (found.settings.finish, found.settings.unfinished) == ("DONE", "score"), "even if it is the default"
    assert (found.roles["boss"].system, found.roles["boss"].prompt) == ("", "{question}")
    assert found.finisher == "boss", "the group's is gone"
    beside = {**GROUP, "finish": "END", "names": {**GROUP["names"], "boss": {"system": "A", "max_tokens": 8}}}
    found = read_cast(RolesSettings(**beside, file=file), RolesSettings(**GROUP))
    assert found.settings.finish == "END"
    assert (found.roles["boss"].system, found.roles["boss"].max_tokens) == ("", 8), "what was added, not the group's"


def test_a_key_of_a_role_beside_a_file_adds_to_its_role(tmp_path):
    file = file_of(tmp_path, "names: {a: {system: You ask.}, b: }\n")
    found = read_cast(RolesSettings(names={"a": {"max_tokens": 8}, "b": {"frozen": True}}, file=file))
    assert [(role.system, role.max_tokens, role.frozen) for role in found.roles.values()] == [
        ("You ask.", 8, False),
        ("", None, True),
    ]
    with pytest.raises(ConfigError, match=r"names has aa, but .*roles.yaml names a, b \(did you mean a\?\)"):
        read_cast(RolesSettings(names={"aa": {"max_tokens": 8}}, file=file))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names:\n  a: {system: one}\n  a: {system: two}\n  b: {}\n", r"found 'a' twice\n.*line 3, column 3"),
        ("order: chain\nnames: {a: {}, b: {}}\norder: graph\n", "found 'order' twice"),
        ("[a, b]", r"contains \['a', 'b'\], expected a mapping"),
        ("names: [a, b]", r"names is \['a', 'b'\], expected a mapping"),
        ("names: {1: {}, b: {}}", "names has the key 1, expected a text; put it into quotes"),
        ("names: {yes: {}, b: {}}", "names has the key True, expected a text"),
        (
            "names: {a: {system: 2026-13-45}, b: {}}",
            "cannot be read: ValueError: month .*; correct the file",
        ),
        ("names: {a: {system: !!bool sure}, b: {}}", "roles.yaml cannot be read: KeyError: 'sure'; correct the file"),
        ("[" * 3000, "roles.yaml cannot be read: RecursionError"),
        ("file: others.yaml\nnames: {a: {}, b: {}}", "roles.yaml has the key file, expected roles"),
        ("finish: [FINISH]\nnames: {a: {}, b: {}}", r"finish is \['FINISH'\], expected a text; in quotes"),
    ],
)
def test_a_file_that_yaml_reads_in_another_way_is_refused(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read_cast(RolesSettings(file=file_of(tmp_path, text)))


def test_a_role_of_a_file_is_kept_where_nothing_is_said_of_it_and_refused_where_it_is_none(tmp_path):
    found = read_cast(RolesSettings(names={"a": None}, file=file_of(tmp_path, "names: {a: {system: You ask.}, b: }\n")))
    assert found.roles["a"].system == "You ask."
    for value in ("5", "false", "''"):
        file = file_of(tmp_path, f"names: {{a: {value}, b: }}\n")
        with pytest.raises(ConfigError, match=r"names\.a is .*, expected a mapping"):
            read_cast(RolesSettings(names={"a": {"max_tokens": 8}}, file=file))


def test_a_file_may_reuse_a_role_by_yamls_merge_key(tmp_path):
    text = "names:\n  a: &one {system: You ask., max_tokens: 8}\n  b: {<<: *one, max_tokens: 4}\n"
    found = read_cast(RolesSettings(file=file_of(tmp_path, text)))
    assert (found.roles["b"].system, found.roles["b"].max_tokens) == ("You ask.", 4)


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        ({}, {}, "has no roles"),
        ({"question": {}}, {}, "has a role 'question'"),
        ({"a b": {}}, {}, "has a role 'a b'"),
        ({"a": "text"}, {}, r"names\.a is 'text', expected a mapping"),
        ({"a": {"systems": "x"}, "b": {}}, {}, r"names\.a has unknown keys \['systems'\].*did you mean system"),
        ({"a": {"pattern": "("}, "b": {}}, {}, "is no regular expression"),
        ({"a": {"penalty": 0.1}, "b": {}}, {}, "has no pattern"),
        ({"a": {"call_ends": True}, "b": {}}, {}, "has no tools"),
        ({"a": {"next": ["bb"]}, "b": {}}, {}, r"next names bb.*expected one of a, b"),
        ({"a": {"next": ["b", "c"]}, "b": {}, "c": {}}, {}, r"set .*order=graph"),
        ({"a": {"next": ["b"]}, "b": {"next": ["a"]}}, {"order": "graph"}, "in a circle"),
        ({"a": {}, "b": {"prompt": "{aa}"}}, {}, r"names \{aa\} \(did you mean a\?\)"),
        ({"a": {"prompt": "{question} {json}"}}, {}, r"one of question; .* itself it is \{\{json\}\}$"),
        ({"a": {"prompt": "{b}"}, "b": {}}, {}, "b has not spoken when a does"),
        ({"a": {}, "b": {"sees": "own"}}, {}, "nobody reads what a writes"),
        ({"a": {}, "b": {}}, {"answers": "a"}, "another role reads its output"),
        ({"a": {}, "b": {}}, {"answers": "c"}, r"answers names c"),
        ({"a": {}}, {"order": "alternate"}, "with one role"),
        ({"a": {"frozen": True}}, {}, r"a is frozen, so nothing would be learnt; set .*names\.a\.frozen=False"),
        ({"a": {"frozen": True}, "b": {"frozen": True}}, {}, "a, b are frozen"),
        ({"a": {"prompt": "{question} {a}"}, "b": {}}, {}, r"has not spoken when a does; use \{question\}$"),
        ({"a": {"next": ["a"]}, "b": {}}, {"order": "graph"}, "a comes after itself"),
        ({"a": {}, "b": {"prompt": "{question} {a.text}"}}, {}, r"names\.b\.prompt has \{a\.text\}, .* no placeholder"),
        ({"a": {}, "b": {"prompt": "{a} { question }"}}, {}, r"has \{ question \}, .*expected \{question\}, "),
    ],
)
def test_roles_that_do_not_fit_are_refused(names, settings, message):
    with pytest.raises(ConfigError, match=message):
        cast(names, **settings)


def test_templates_are_filled_once():
    said = {"a": Said("{b} {question}", "found"), "b": Said("x")}
    assert fill("{question}|{a}|{a.result}|{{b}}|{b}", "Q", said) == "Q|{b} {question}|found|{b}|x"
    assert names_in("{question} {a.result} {{c}} {a} {b}") == ["a", "b"]


def test_the_question_is_the_last_user_message():
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "q"}]}]
    assert question_of(chat) == ([chat[0]], "q")
    assert question_of(chat[:1]) == ([chat[0]], "")


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("", "as it is", ("as it is", True)),
        ("<q>(.*)</q>", " <q>a\nb</q>\n", ("a\nb", True)),
        ("<q>.*</q>", "<q>a</q>", ("<q>a</q>", True)),
        ("<q>(.*)</q>", "<q>a", ("<q>a", False)),
        ("<q>(.*)</q>", "so <q>a</q>", ("so <q>a</q>", False)),
    ],
)
def test_a_pattern_is_of_the_whole_output(pattern, text, expected):
    assert passed_on(pattern, text) == expected


@pytest.mark.parametrize(
    ("sampling", "fork", "expected"),
    [("fof", 0, 12), ("rr", 0, 12), ("rr", 1, 9), ("rr", 2, 6), ("is", 0, 12 + 6 + 3)],
)
def test_how_many_outputs_three_roles_have_in_four_branches(sampling, fork, expected):
    assert asked_of(RolesSettings(sampling=sampling), 3, fork, 4) == expected


def test_forks_are_drawn_evenly():
    settings = RolesSettings(sampling="rr")
    counts = [0, 0, 0]
    for question in range(900):
        counts[fork_at(settings, ["a", "b", "c"], f"1 {question}")] += 1
    assert all(240 < count < 360 for count in counts), counts  # 300 expected, standard deviation 14

"""Settings, prompts and seeds as plain data."""

import pytest

from pack.pilot.arms import (
    UNGUIDED,
    Arm,
    Cell,
    address,
    cells,
    parse_arms,
    parse_prompts,
    parse_questions,
    read_prompts,
    seeds,
    with_references,
)

RULES, OPTIONS = ["ratio", "elementwise"], ["strength", "every", "estimator"]


def test_lines_become_arms():
    found = parse_arms(
        "cfg 3, 5\n# no\nratio 2.5 strength=0.5 every=2  # yes\n\nratio 2.5 every=2 strength=0.5\n", RULES, OPTIONS
    )
    assert found == [Arm("cfg", 3.0), Arm("cfg", 5.0), Arm("ratio", 2.5, (("every", 2), ("strength", 0.5)))]
    assert [arm.label for arm in found] == ["CFG 3", "CFG 5", "ratio 2.5 every=2 strength=0.5"]
    assert found[2].node_options() == {"rectification": "ratio", "strength": 0.5, "every": 2}
    assert found[0].node_options() == {"strength": 0.0}
    assert [Arm.from_json(arm.as_json()) for arm in found] == found


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no settings"),
        ("magic 3", "'magic'"),
        ("ratio", "no cfg"),
        ("ratio three", "'three'"),
        ("ratio 0.5", "'0.5'"),
        ("ratio nan", "'nan'"),
        ("cfg 3 strength=1", "plain CFG"),
        ("ratio 3 profile=x", "'profile'"),
        ("ratio '3", "cannot be read"),
    ],
)
def test_what_cannot_be_understood_is_named(text, told):
    with pytest.raises(ValueError, match=r"^REG: ") as error:
        parse_arms(text, RULES, OPTIONS)
    assert told in str(error.value) and "\n" not in str(error.value).replace("\\n", "")


def test_the_references_come_first_and_once():
    arms, baseline = with_references([Arm("ratio", 3.0), Arm("cfg", 5.0)], 5)
    assert arms == [UNGUIDED, Arm("cfg", 5.0), Arm("ratio", 3.0)] and baseline == arms[1]


def test_a_run_cut_short_has_the_same_noises_of_every_arm():
    arms = [UNGUIDED, Arm("cfg", 5.0), Arm("ratio", 3.0)]
    made = cells(arms, ["a", "b"], 4, seed=0)[: 3 * 5]
    per_arm = [{(cell.prompt, cell.seed) for cell in made if cell.arm == arm} for arm in arms]
    assert per_arm[0] == per_arm[1] == per_arm[2] and len(per_arm[0]) == 5


def test_prompts_and_pictures_can_be_added_later():
    few, many = (set(cells([UNGUIDED], prompts, n, seed=7)) for prompts, n in ((["a"], 2), (["b", "a"], 5)))
    assert few < many
    assert seeds("a", 3, 7) != seeds("b", 3, 7)
    assert not set(seeds("a", 50, 0)) & set(seeds("b", 50, 0))


def test_addresses_follow_from_content_alone():
    assert address({"a": 1, "b": 2}) == address({"b": 2, "a": 1})
    assert address(Cell(UNGUIDED, "a", 1).arm.as_json(), 1) != address(Cell(UNGUIDED, "a", 1).arm.as_json(), 2)
    assert len(address("ü")) == 32


def test_prompts_are_lines():
    assert parse_prompts("one\n\n  two \n#no\none\n") == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "told"), [(b"", "no prompts"), (b"\n# x\n", "no prompts"), ("caf\xe9".encode("latin-1"), "not UTF-8")]
)
def test_prompt_files_that_are_none(tmp_path, content, told):
    (file := tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(ValueError, match=f"^REG: the prompt file .*{told}"):
        read_prompts(file)


def test_a_prompt_file_of_windows_is_read(tmp_path):
    (file := tmp_path / "prompts.txt").write_bytes("\ufeffa café\r\nb\r\n".encode())
    assert read_prompts(file) == ["a café", "b"]
    with pytest.raises(ValueError, match=r"^REG: the prompt file .*cannot be read"):
        read_prompts(tmp_path / "none.txt")


def test_questions_have_answers():
    assert parse_questions("a man | a woman\n") == parse_questions("a man / a woman") == [["a man", "a woman"]]
    assert parse_questions("in 4/4 time / in 3/4 time") == [["in 4/4 time", "in 3/4 time"]]
    with pytest.raises(ValueError, match=r"^REG: the question 'a man'"):
        parse_questions("a man")

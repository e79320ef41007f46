"""The competition's lists: what is read from them, and the verdicts that others give."""

from pathlib import Path

import pytest

from certtrain.competition.instances import (
    Instance,
    Key,
    limited,
    read_expected,
    read_instances,
    with_expected,
)
from certtrain.errors import BenchmarkError
from certtrain.interchange.packed import present


def listed(folder: Path, text: str, name: str = "instances.csv") -> list[Instance]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return read_instances(folder / name)


def test_a_list_has_a_network_a_property_and_a_time_limit_in_each_line(tmp_path: Path) -> None:
    found = listed(tmp_path / "acasxu", "onnx/a.onnx,vnnlib/p.vnnlib,116\n\n./b.onnx, q.vnnlib.gz ,30.5\n")
    assert [each.key for each in found] == [
        Key("acasxu", "onnx/a.onnx", "vnnlib/p.vnnlib"),
        Key("acasxu", "./b.onnx", "q.vnnlib.gz"),
    ]
    assert [each.time_limit for each in found] == [116, 30.5]
    assert [each.expected for each in found] == [None, None]


def test_the_folder_of_a_version_is_not_the_category(tmp_path: Path) -> None:
    (found,) = listed(tmp_path / "acasxu" / "1.0", "a.onnx,p.vnnlib,1\n")
    assert found.key.category == "acasxu"


def test_limits_and_expected_verdicts_may_be_missing(tmp_path: Path) -> None:
    found = listed(tmp_path, "a.onnx,p.vnnlib\na.onnx,q.vnnlib,,sat\na.onnx,r.vnnlib,5,holds\na.onnx,p.vnnlib,9\n")
    assert [each.time_limit for each in found] == [None, None, 5]
    assert [each.expected for each in found] == [None, "sat", "unsat"]
    assert [each.time_limit for each in limited(found, 4)] == [4, 4, 4]
    assert [each.time_limit for each in limited(found, 6)] == [6, 6, 5]
    assert limited(found, None) == found


WRONG = {
    "a.onnx\n": "line 1: a line is onnx,vnnlib,timeout",
    "a.onnx,p.vnnlib,1\na,b,c,d,e\n": "line 2: a line is",
    "a.onnx,p.vnnlib,never\n": "the timeout 'never' is not a number",
    "a.onnx,p.vnnlib,-1\n": "the timeout '-1'",
    "a.onnx,p.vnnlib,nan\n": "the timeout 'nan'",
    "a.onnx,p.vnnlib,1,maybe\n": "the expected verdict 'maybe'",
    "a.onnx,,1\n": "names a network and a property",
    "\"[('f', 'a.onnx'), ('g', 'b.onnx')]\",p.vnnlib,1\n": "about several networks",
    "\n": "lists no instances",
    '"a.onnx,p.vnnlib,1\n': "cannot be read",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_line_is_named(text: str, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=WRONG[text]):
        listed(tmp_path, text)


def test_a_list_that_is_missing_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"none\.csv cannot be read: No such file"):
        read_instances(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\x00")
    with pytest.raises(BenchmarkError, match="cannot be read"):
        read_instances(tmp_path / "bytes.csv")


def test_the_gzipped_file_is_taken_where_the_plain_one_is_absent(tmp_path: Path) -> None:
    (found,) = listed(tmp_path, "onnx/a.onnx,p.vnnlib,1\n")
    assert (found.network, found.property) == (None, None)
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "a.onnx.gz").touch()
    assert found.network == tmp_path.resolve() / "onnx" / "a.onnx.gz"
    (tmp_path / "onnx" / "a.onnx").touch()
    assert found.network == tmp_path.resolve() / "onnx" / "a.onnx"
    assert present(tmp_path / "onnx") is None  # a folder is no file


OTHERS = """2022_safenlp,/x/safenlp/onnx/medical/net.onnx,/x/safenlp/vnnlib/medical/p_1.vnnlib.gz,1.0,sat,2
2022_safenlp,/x/safenlp/onnx/ruarobot/net.onnx,/x/safenlp/vnnlib/ruarobot/p_1.vnnlib,1.0,holds,2
safenlp,/x/onnx/ruarobot/net.onnx,/x/vnnlib/ruarobot/p_2.vnnlib,1.0,timeout,2
one,/x/onnx/net.onnx,/x/vnnlib/q.vnnlib,sat,2
two,/x/onnx/net.onnx,/x/vnnlib/q.vnnlib,unsat,2
"""


def test_verdicts_of_another_verifier_are_found_by_the_ends_of_the_paths(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text(OTHERS)
    known = read_expected(tmp_path / "results.csv")
    assert len(known) == 4
    names = ["medical/net.onnx,vnnlib/medical/p_1", "ruarobot/net.onnx.gz,vnnlib/ruarobot/p_1"]
    names += ["ruarobot/net.onnx,vnnlib/ruarobot/p_2", "net.onnx,vnnlib/q", "et.onnx,vnnlib/q"]
    lines = "".join(f"onnx/{name}.vnnlib,1\n" for name in names)
    found = with_expected(listed(tmp_path / "one", lines), known)
    assert [each.expected for each in found] == ["sat", "unsat", None, "sat", None]
    elsewhere = with_expected(listed(tmp_path / "three", lines), known)
    assert [each.expected for each in elsewhere] == ["sat", "unsat", None, None, None]  # two verifiers disagree on q


def test_a_file_that_has_no_results_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("a.onnx,p.vnnlib,1\n")
    with pytest.raises(BenchmarkError, match="line 1: a line is category,onnx,vnnlib"):
        read_expected(tmp_path / "results.csv")

"""Who was erased is known by hash alone, and their rows don't come back."""

from __future__ import annotations

import pyarrow as pa
import pytest

from ugt.erasure import FILE, Erased, SourceFile
from ugt.schema import UGTError


def test_rows_of_erased_users_are_dropped_and_no_others(tmp_path):
    Erased.load(tmp_path).begin("u2")
    erased = Erased.load(tmp_path)
    table = pa.table({"user_id": ["u1", "u2", "u22", None, "u2"], "x": range(5)})
    assert erased.mask(table["user_id"]).tolist() == [False, True, False, False, True]
    assert erased.drop(table)["x"].to_pylist() == [0, 2, 3]
    assert erased.mask(["u2", "u1"]).tolist() == [True, False]
    assert erased.mask(table["user_id"].dictionary_encode()).tolist() == [False, True, False, False, True]
    assert erased.drop(table.slice(0, 0)).num_rows == 0


def test_a_home_without_erasures_drops_nothing_and_writes_nothing(tmp_path):
    erased = Erased.load(tmp_path)
    table = pa.table({"user_id": ["u1", None]})
    assert erased.drop(table) is table
    assert not (tmp_path / FILE).exists()


def test_the_hash_is_of_this_home_and_of_the_whole_id(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Erased.load(tmp_path / name).begin("u1")
    a, b = Erased.load(tmp_path / "a"), Erased.load(tmp_path / "b")
    assert a.hash_of("u1") != b.hash_of("u1")
    assert a.hashes(["u1", "u1", "u1 "])[0] == a.hashes(["u1"])[0] != a.hash_of("u1 ")
    assert a.get("u1") is not None
    assert a.get("u1 ") is None


def test_sources_add_up_and_an_erasure_is_unfinished_until_it_is_said_to_be_done(tmp_path):
    first, second = SourceFile(name="ratings:a.csv", sha256="a"), SourceFile(name="ratings:b.csv", sha256="b")
    erased = Erased.load(tmp_path)
    erased.begin("u1", [first])
    assert Erased.load(tmp_path).unfinished() == {erased.hash_of("u1")}
    Erased.load(tmp_path).finish("u1")
    erased = Erased.load(tmp_path)
    assert erased.unfinished() == set()
    assert erased.begin("u1", [second]).sources == [first, second]


def test_a_damaged_record_stops_whoever_reads_it(tmp_path):
    Erased.load(tmp_path).begin("u1")
    (tmp_path / FILE).write_text((tmp_path / FILE).read_text()[:-20])
    with pytest.raises(UGTError, match="erased users would come back"):
        Erased.load(tmp_path)

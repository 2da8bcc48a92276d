"""Tables of speakers."""

import pytest

from chns_jax.common.errors import UserError
from chns_jax.corpus.metadata import read_column, read_genders


@pytest.mark.parametrize(
    "text",
    [
        "VoxCeleb1 ID\tVGGFace1 ID\tGender\tNationality\nid1\tA_B\tm\tUK\nid2\tC\tf\tUSA\n",
        "VoxCeleb2 ID ,VGGFace2 ID ,Gender ,Set \nid1 ,n1 ,m ,dev \nid2 ,n2 ,f ,dev \n",
        "speaker,gender,split\nid1,male,train\nid2,Female,train\nid3,,train\nid4\n",
        "video,gender,speaker_id\nx,m,id1\ny,f,id2\nz,other,id3\n",
    ],
)
def test_known_tables(tmp_path, text):
    (tmp_path / "meta.csv").write_text(text)
    assert read_genders(tmp_path / "meta.csv") == {"id1": "m", "id2": "f"}


@pytest.mark.parametrize(
    "text", ["", "id1,m\nid2,f\n", "speaker,sex\na,f\n", "video,gender\na,f\n"]
)
def test_a_table_without_the_columns(tmp_path, text):
    (tmp_path / "meta.csv").write_text(text)
    with pytest.raises(UserError, match="meta.csv names no column of speakers"):
        read_genders(tmp_path / "meta.csv")


def test_no_table(tmp_path):
    (tmp_path / "meta.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="meta.csv is not text in UTF-8"):
        read_genders(tmp_path / "meta.csv")
    with pytest.raises(UserError, match="gone.csv is not there: give a table"):
        read_genders(tmp_path / "gone.csv")


def test_any_column(tmp_path):
    (tmp_path / "meta.csv").write_text("speaker,Age group\na,6 to 9\nb,\nc\nd, 20 \n")
    assert read_column(tmp_path / "meta.csv", "age GROUP") == {"a": "6 to 9", "d": "20"}
    with pytest.raises(UserError, match="no column sex: it names speaker, Age group"):
        read_column(tmp_path / "meta.csv", "sex")
    (tmp_path / "meta.csv").write_text("name,age\na,6\n")
    with pytest.raises(UserError, match="no column of speakers"):
        read_column(tmp_path / "meta.csv", "age")


def test_a_speaker_of_two_values(tmp_path):
    (tmp_path / "meta.csv").write_text("speaker,gender\na,m\nb,f\na,male\nb,m\n")
    for read in (read_genders, lambda path: read_column(path, "gender")):
        with pytest.raises(UserError, match="meta.csv line [45] says m.* of [ab], of whom a line"):
            read(tmp_path / "meta.csv")


def test_lines_without_a_speaker_and_values_with_odd_letters(tmp_path):
    table = "speaker,gender,town\r\na,m,A\u2028B\r\n,f,C\n,m,D\n\nb,f,\x85\n"
    (tmp_path / "meta.csv").write_text(table, encoding="utf-8")
    assert read_column(tmp_path / "meta.csv", "town") == {"a": "A\u2028B"}
    assert read_genders(tmp_path / "meta.csv") == {"a": "m", "b": "f"}

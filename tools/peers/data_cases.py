"""Writes tests/golden/data: small Parquet files by pyarrow, and their rows as JSON.

    python3 tools/peers/data_cases.py

Needs pyarrow (26) from PyPI.
"""

import decimal
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests" / "golden" / "data"

ROWS = [
    {"question": "How many?\n", "answer": "4\n#### 1,234", "n": 3, "x": 0.5, "ok": True,
     "messages": [{"role": "user", "content": "hé 😀"}, {"role": "assistant", "content": None}], "nums": [1, None, -3],
     "nested": {"a": [[1], [], [2, 3]], "b": {"c": "deep"}}, "raw": "text"},
    {"question": "", "answer": None, "n": None, "x": None, "ok": None, "messages": [], "nums": None, "nested": None, "raw": None},
    {"question": "x" * 300, "answer": "#### 5", "n": -(2**63), "x": 1e300, "ok": False, "messages": None, "nums": [],
     "nested": {"a": None, "b": {"c": None}}, "raw": ""},
]
SCHEMA = pa.schema([
    ("question", pa.string()), ("answer", pa.string()), ("n", pa.int64()), ("x", pa.float64()), ("ok", pa.bool_()),
    ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))), ("nums", pa.list_(pa.int32())),
    ("nested", pa.struct([("a", pa.list_(pa.list_(pa.int8()))), ("b", pa.struct([("c", pa.large_string())]))])), ("raw", pa.binary()),
])


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    many = [{**ROWS[i % 3], "n": i} for i in range(50)]
    plans = {
        "snappy": dict(compression="snappy"), "none": dict(compression="none"), "gzip": dict(compression="gzip"),
        "lz4": dict(compression="lz4"), "brotli": dict(compression="brotli"), "zstd": dict(compression="zstd"),
        "pages_v2": dict(compression="snappy", data_page_version="2.0", use_dictionary=False),
    }
    for name, plan in plans.items():
        pq.write_table(pa.Table.from_pylist(ROWS, SCHEMA), OUT / f"{name}.parquet", **plan)
    pq.write_table(pa.Table.from_pylist(ROWS, SCHEMA), OUT / "zstd_v2.parquet", compression="zstd", data_page_version="2.0")
    pq.write_table(pa.Table.from_pylist(many, SCHEMA), OUT / "groups.parquet", row_group_size=7)
    bombs()
    rows = {"rows": ROWS, "groups": many}

    odd = pa.table({
        "f32": pa.array([0.1, float("nan"), None], pa.float32()), "u64": pa.array([2**64 - 1, 0, None], pa.uint64()),
        "dec": pa.array([decimal.Decimal("1.50"), None, decimal.Decimal("-0.01")], pa.decimal128(5, 2)),
        "day": pa.array([1, None, 3], pa.date32()), "us": pa.array([1, 2, None], pa.timestamp("us")),
        "bin": pa.array([b"\xff\x00", b"ok", None]), "map": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int32())),
        "cat": pa.array(["a", "b", "a"]).dictionary_encode(), "null": pa.nulls(3), "f16": pa.array([1.5, None, 2.0], pa.float16()),
    })
    pq.write_table(odd, OUT / "odd.parquet")
    f32 = 0.10000000149011612
    rows["odd"] = [
        {"f32": f32, "u64": 2**64 - 1, "dec": "1.50", "day": 1, "us": 1, "bin": "ff00", "map": {"k": 1}, "cat": "a", "null": None, "f16": 1.5},
        {"f32": None, "u64": 0, "dec": None, "day": None, "us": 2, "bin": "ok", "map": {}, "cat": "b", "null": None, "f16": None},
        {"f32": None, "u64": None, "dec": "-0.01", "day": 3, "us": None, "bin": None, "map": None, "cat": "a", "null": None, "f16": 2.0},
    ]
    (OUT / "rows.json").write_text(json.dumps(rows, ensure_ascii=False) + "\n")


def bombs():
    """Files of a few kilobytes that hold gigabytes, each in its own way."""
    plain = dict(compression="brotli", compression_level=11, write_statistics=False)
    tables = {
        "page": (pa.table({"a": ["x" * (1 << 29)]}), dict(plain, use_dictionary=False, data_page_size=1 << 30)),
        "page_zstd": (pa.table({"a": ["x" * (1 << 29)]}), dict(plain, compression="zstd", compression_level=19, use_dictionary=False)),
        "dictionary": (pa.table({"a": pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), ["x" * (1 << 20)])}),
                       dict(plain, dictionary_pagesize_limit=1 << 22)),
        "nulls": (pa.table({"a": pa.nulls(1 << 24, pa.int32()), "b": pa.nulls(1 << 24, pa.string())}), plain),
        "list": (pa.table({"a": pa.array([[None] * (1 << 24)], pa.list_(pa.int32()))}), plain),
        "prefix": (pa.table({"a": ["x" * (3 << 20)] * 1_000}),
                   dict(plain, use_dictionary=False, column_encoding={"a": "DELTA_BYTE_ARRAY"}, data_page_size=1 << 30)),
    }
    for name, (table, plan) in tables.items():
        pq.write_table(table, OUT / f"bomb_{name}.parquet", **plan)


if __name__ == "__main__":
    main()

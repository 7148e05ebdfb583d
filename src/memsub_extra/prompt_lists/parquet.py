"""Reads prompt lists in parquet files; `memsub.io.lists` finds it by the suffix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from memsub.io import lists
from memsub.io.lists import Rows, too_large
from memsub.io.tables import columns_of, row_of


def read(path: Path) -> Rows:
    try:
        with parquet.ParquetFile(path) as file:
            names, about = file.schema_arrow.names, file.metadata
            columns = [
                # A column "image" of bytes has no file names, and is not read.
                "" if column == "image" and not _is_text(kind) else column
                for column, kind in zip(columns_of(names, str(path)), file.schema_arrow.types, strict=True)
            ]
            wanted = {name: column for name, column in zip(names, columns, strict=True) if column}
            groups = [about.row_group(i) for i in range(about.num_row_groups)]
            chunks = [group.column(j) for group in groups for j in range(group.num_columns)]
            kept = [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] in wanted]
            # Values of lists count as well. Repeated values are small in the file, and stay one object in memory.
            values = max([about.num_rows, *(chunk.num_values for chunk in kept)])
            if values > lists.MOST_ROWS or sum(chunk.total_uncompressed_size for chunk in kept) > lists.MOST_BYTES:
                raise too_large(path)
        repeated = [chunk.path_in_schema for chunk in kept if chunk.physical_type == "BYTE_ARRAY"]
        with parquet.ParquetFile(path, read_dictionary=repeated) as file:
            table = file.read(list(wanted))
            cells = [[v for chunk in table[name].chunks for v in _python(chunk)] for name in wanted]
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is truncated or no parquet file: {error}.") from error
    return "row", enumerate((row_of(list(wanted.values()), row) for row in zip(*cells, strict=True)), 1)


def _is_text(kind: pyarrow.DataType) -> bool:
    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)


def _python(chunk: Any) -> list[Any]:
    if pyarrow.types.is_list(chunk.type):
        values = iter(_python(chunk.flatten()))
        return [None if n is None else [next(values) for _ in range(n)] for n in chunk.value_lengths().to_pylist()]
    if not pyarrow.types.is_dictionary(chunk.type):
        return chunk.to_pylist()
    values = chunk.dictionary.to_pylist()
    return [None if i is None else values[i] for i in chunk.indices.to_pylist()]

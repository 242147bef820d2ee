//! Rows of a Parquet file, the form in which most data sets are published.
//!
//! Columns may be nested; what JSON lacks is written as follows.
//!
//! | Parquet | JSON |
//! |---|---|
//! | NaN, infinities | null |
//! | decimals | a string |
//! | dates, times | a number: days, or milli- or microseconds |
//! | bytes | a string if they are UTF-8, else a string of hexadecimal digits |
//! | maps | an object; a list of pairs where the keys are no strings |
//!
//! Pages may be compressed with Snappy, gzip, LZ4 or Brotli. Zstandard has no decoder in the
//! library that is written in Rust, so such files are refused, with the codec's name.

use std::path::Path;

use bytes::Bytes;
use parquet::basic::Compression;
use parquet::bloom_filter::Sbbf;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::{ChunkReader, FileReader, RowGroupReader};
use parquet::file::serialized_reader::SerializedFileReader;
use parquet::record::reader::{RowIter, TreeBuilder};
use parquet::record::{Field, Row as Record};
use parquet::schema::types::Type;
use serde_json::{Map, Number, Value};

use super::Row;
use crate::error::{Error, Result};
use crate::io::json;
use crate::text::files;

/// Most rows of a file.
const ROW_LIMIT: u64 = 1 << 28;
/// Most values of one column in one row group; they may take a few bytes of file only.
const VALUE_LIMIT: u64 = 1 << 26;
/// Most text and structure of all rows, in bytes.
const SIZE_LIMIT: u64 = 16 << 30;
/// Deepest nesting of a column.
const DEPTH_LIMIT: usize = 64;

/// All rows of a file.
pub fn read(path: &Path) -> Result<Vec<Row>> {
    let (file, _) = json::open(path)?;
    contained(path, file)
}

/// All rows of a file's bytes; `path` is only for messages.
pub fn parse(bytes: Vec<u8>, path: &Path) -> Result<Vec<Row>> {
    contained(path, Bytes::from(bytes))
}

fn contained<R: ChunkReader + 'static>(path: &Path, source: R) -> Result<Vec<Row>> {
    files::contained(path, "the Parquet reader", move || rows(path, source))?
}

fn rows<R: ChunkReader + 'static>(path: &Path, source: R) -> Result<Vec<Row>> {
    let wrong = |e: ParquetError| Error::format(path, format!("Parquet: {e}"));
    let reader = SerializedFileReader::new(source).map_err(wrong)?;
    check(path, reader.metadata())?;
    let (mut rows, mut left) = (Vec::new(), SIZE_LIMIT);
    let schema = reader.metadata().file_metadata().schema_descr_ptr();
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group).map_err(wrong)?;
        let group = Checked(group.as_ref());
        for record in TreeBuilder::new().as_iter(schema.clone(), &group).map_err(wrong)? {
            let record = record.map_err(wrong)?;
            let row = object(&record, &mut left).map_err(|reason| {
                Error::format(path, format!("Parquet: row {}: {reason}", rows.len()))
            })?;
            rows.push(row);
        }
    }
    Ok(rows)
}

/// What the footer promises must be within the limits, and its codecs known.
fn check(path: &Path, metadata: &ParquetMetaData) -> Result<()> {
    let refuse = |reason: String| Err(Error::format(path, format!("Parquet: {reason}")));
    let file = metadata.file_metadata();
    if depth(file.schema()) > DEPTH_LIMIT {
        return refuse(format!("columns are nested deeper than {DEPTH_LIMIT}"));
    }
    let mut rows = 0u64;
    for group in metadata.row_groups() {
        rows = rows.saturating_add(group.num_rows().try_into().unwrap_or(u64::MAX));
        for column in group.columns() {
            let name = column.column_path().string();
            let codec = column.compression();
            if !readable(codec) {
                let reason = format!(
                    "column `{name}` is compressed with {codec}, which is not supported: write the \
                     file again with snappy, gzip, lz4, brotli or without compression"
                );
                return Err(Error::Unsupported {
                    op: "parquet",
                    reason: format!("{}: {reason}", path.display()),
                });
            }
        }
    }
    if rows > ROW_LIMIT {
        return refuse(format!("has more than {ROW_LIMIT} rows"));
    }
    Ok(())
}

fn depth(schema: &Type) -> usize {
    let fields = if schema.is_group() { schema.get_fields() } else { &[] };
    1 + fields.iter().map(|field| depth(field)).max().unwrap_or(0)
}

fn readable(codec: Compression) -> bool {
    use Compression::*;
    matches!(codec, UNCOMPRESSED | SNAPPY | GZIP(_) | LZ4 | LZ4_RAW | BROTLI(_))
}

/// A row group whose pages are looked at before they are decoded: the decoder allocates what a
/// page's header claims.
struct Checked<'a>(&'a dyn RowGroupReader);

impl RowGroupReader for Checked<'_> {
    fn metadata(&self) -> &RowGroupMetaData {
        self.0.metadata()
    }

    fn num_columns(&self) -> usize {
        self.0.num_columns()
    }

    fn get_column_page_reader(&self, i: usize) -> ParquetResult<Box<dyn PageReader>> {
        Ok(Box::new(CheckedPages { pages: self.0.get_column_page_reader(i)?, values: 0 }))
    }

    fn get_column_bloom_filter(&self, i: usize) -> Option<&Sbbf> {
        self.0.get_column_bloom_filter(i)
    }

    fn get_row_iter(&self, projection: Option<Type>) -> ParquetResult<RowIter<'_>> {
        self.0.get_row_iter(projection)
    }
}

struct CheckedPages {
    pages: Box<dyn PageReader>,
    values: u64,
}

impl Iterator for CheckedPages {
    type Item = ParquetResult<Page>;

    fn next(&mut self) -> Option<ParquetResult<Page>> {
        self.get_next_page().transpose()
    }
}

impl PageReader for CheckedPages {
    fn get_next_page(&mut self) -> ParquetResult<Option<Page>> {
        let Some(page) = self.pages.get_next_page()? else { return Ok(None) };
        let values = page.num_values() as u64;
        let wrong = |reason: &str| Err(ParquetError::General(reason.to_owned()));
        if let Page::DictionaryPage { buf, .. } = &page {
            if values > buf.len() as u64 {
                return wrong("a dictionary has more values than bytes");
            }
            return Ok(Some(page));
        }
        self.values += values;
        if self.values > VALUE_LIMIT {
            return wrong("a column has too many values in one row group");
        }
        Ok(Some(page))
    }

    fn peek_next_page(&mut self) -> ParquetResult<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> ParquetResult<()> {
        self.pages.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> ParquetResult<bool> {
        self.pages.at_record_boundary()
    }
}

/// Takes `bytes` off what is left.
fn charge(left: &mut u64, bytes: usize) -> std::result::Result<(), String> {
    let rest = left.checked_sub(bytes as u64 + 32);
    *left = rest.ok_or_else(|| format!("the rows are larger than {SIZE_LIMIT} bytes"))?;
    Ok(())
}

fn object(record: &Record, left: &mut u64) -> std::result::Result<Map<String, Value>, String> {
    let mut fields = Map::new();
    for (name, field) in record.get_column_iter() {
        charge(left, name.len())?;
        if fields.insert(name.clone(), json(field, left)?).is_some() {
            return Err(format!("the column `{name}` appears twice"));
        }
    }
    Ok(fields)
}

fn json(field: &Field, left: &mut u64) -> std::result::Result<Value, String> {
    charge(left, 0)?;
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(v) => Value::Bool(*v),
        Field::Byte(v) => (*v).into(),
        Field::Short(v) => (*v).into(),
        Field::Int(v) | Field::Date(v) | Field::TimeMillis(v) => (*v).into(),
        Field::Long(v) | Field::TimeMicros(v) => (*v).into(),
        Field::TimestampMillis(v) | Field::TimestampMicros(v) => (*v).into(),
        Field::UByte(v) => (*v).into(),
        Field::UShort(v) => (*v).into(),
        Field::UInt(v) => (*v).into(),
        Field::ULong(v) => (*v).into(),
        Field::Float16(v) => float(v.to_f64()),
        Field::Float(v) => float(*v as f64),
        Field::Double(v) => float(*v),
        Field::Decimal(_) => field.to_string().into(),
        Field::Str(text) => {
            charge(left, text.len())?;
            text.as_str().into()
        }
        Field::Bytes(bytes) => {
            charge(left, 2 * bytes.len())?;
            text_or_hex(bytes.data()).into()
        }
        Field::Group(record) => Value::Object(object(record, left)?),
        Field::ListInternal(list) => {
            let items = list.elements().iter().map(|item| json(item, left));
            Value::Array(items.collect::<std::result::Result<_, _>>()?)
        }
        Field::MapInternal(map) => pairs(map.entries(), left)?,
    })
}

fn float(value: f64) -> Value {
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}

fn text_or_hex(bytes: &[u8]) -> String {
    let hex = |_| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    std::str::from_utf8(bytes).map(str::to_owned).unwrap_or_else(hex)
}

fn pairs(entries: &[(Field, Field)], left: &mut u64) -> std::result::Result<Value, String> {
    if entries.iter().all(|(key, _)| matches!(key, Field::Str(_))) {
        let mut fields = Map::new();
        for (key, value) in entries {
            if let Field::Str(key) = key {
                charge(left, key.len())?;
                fields.insert(key.clone(), json(value, left)?);
            }
        }
        return Ok(Value::Object(fields));
    }
    let pair = |(key, value): &(Field, Field)| {
        Ok(Value::Array(vec![json(key, left)?, json(value, left)?]))
    };
    entries.iter().map(pair).collect::<std::result::Result<_, String>>().map(Value::Array)
}

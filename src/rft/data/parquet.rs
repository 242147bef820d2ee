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
//! Pages may be compressed with Snappy, gzip, LZ4, Brotli or Zstandard.
//!
//! A kilobyte of Parquet can hold gigabytes. What a file may decode to, and what its rows may take,
//! is bounded by 256 MiB and 1,000 times the file's size, and by 16 GiB in all; a file that claims
//! more is refused before it is decoded.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use parquet::basic::Compression;
use parquet::bloom_filter::Sbbf;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::{ChunkReader, FileReader, Length, RowGroupReader};
use parquet::file::serialized_reader::SerializedFileReader;
use parquet::record::reader::{RowIter, TreeBuilder};
use parquet::record::{Field, Row as Record};
use parquet::schema::types::Type;
use serde_json::{Map, Number, Value};

use super::Row;
use super::pages::{self, Budget, Pages};
use crate::io::json;
use crate::text::untrusted;
use gradus::error::{Error, Result};

/// Most rows of a file.
const ROW_LIMIT: u64 = 1 << 28;
/// Bytes that every file may decode to, how many more for a byte of file, and how many in all.
const SIZE_LIMIT: (u64, u64, u64) = (256 << 20, 1_000, 16 << 30);
/// Memory of a value, and of a named one in a row or struct beside its name, in bytes.
const VALUE_SIZE: usize = 32;
const FIELD_SIZE: usize = 128;
/// Bytes of the limit for a value of a column: a row is put together before its size is known.
const COLUMN_VALUE: u64 = 64;
/// Records of which columns are read ahead. Values of one encoding may each be as long as a page.
const READ_AHEAD: usize = 64;
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
    untrusted::contained(path, "the Parquet reader", move || rows(path, source))?
}

/// A file that several readers share.
struct Shared<R>(Arc<R>);

impl<R: ChunkReader> Length for Shared<R> {
    fn len(&self) -> u64 {
        self.0.len()
    }
}

impl<R: ChunkReader> ChunkReader for Shared<R> {
    type T = R::T;

    fn get_read(&self, start: u64) -> ParquetResult<R::T> {
        self.0.get_read(start)
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        if start.saturating_add(length as u64) > self.len() {
            return Err(ParquetError::EOF("a column ends behind the file".into()));
        }
        self.0.get_bytes(start, length)
    }
}

/// What a file of `size` bytes may decode to.
fn limit(size: u64) -> u64 {
    let (base, factor, most) = SIZE_LIMIT;
    size.saturating_mul(factor).saturating_add(base).min(most)
}

fn rows<R: ChunkReader + 'static>(path: &Path, source: R) -> Result<Vec<Row>> {
    let wrong = |e: ParquetError| Error::format(path, format!("Parquet: {e}"));
    let source = Shared(Arc::new(source));
    let limit = limit(source.len());
    let reader = SerializedFileReader::new(Shared(source.0.clone())).map_err(wrong)?;
    check(path, reader.metadata())?;
    let (mut rows, mut room) = (Vec::new(), MemoryBudget { left: limit, limit });
    let budget = Mutex::new(Budget { bytes: limit, values: limit / COLUMN_VALUE });
    let schema = reader.metadata().file_metadata().schema_descr_ptr();
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group).map_err(wrong)?;
        let group = Checked { group: group.as_ref(), source: &source, budget: &budget };
        let tree = TreeBuilder::new().with_batch_size(READ_AHEAD);
        for record in tree.as_iter(schema.clone(), &group).map_err(wrong)? {
            let record = record.map_err(wrong)?;
            let row = object(&record, &mut room).map_err(|reason| {
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
                return refuse(format!(
                    "column `{name}` is compressed with {codec}, which is not supported: write the \
                     file again with snappy, gzip, lz4, brotli, zstd or without compression"
                ));
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
    matches!(codec, UNCOMPRESSED | SNAPPY | GZIP(_) | LZ4 | LZ4_RAW | BROTLI(_) | ZSTD(_))
}

/// A row group whose pages are looked at before they are decoded: the decoder allocates what a
/// page's header claims.
struct Checked<'a, R: ChunkReader> {
    group: &'a dyn RowGroupReader,
    source: &'a Shared<R>,
    budget: &'a Mutex<Budget>,
}

impl<R: ChunkReader> RowGroupReader for Checked<'_, R> {
    fn metadata(&self) -> &RowGroupMetaData {
        self.group.metadata()
    }

    fn num_columns(&self) -> usize {
        self.group.num_columns()
    }

    fn get_column_page_reader(&self, i: usize) -> ParquetResult<Box<dyn PageReader>> {
        let column = self.metadata().column(i);
        let (start, length) = column.byte_range();
        let bytes = self.source.get_bytes(start, usize::try_from(length)?)?;
        pages::check(&bytes, &mut self.budget.lock().unwrap_or_else(PoisonError::into_inner))?;
        let codec = column.compression();
        let pages = match pages::is_own(codec) {
            true => Box::new(Pages::new(bytes, codec)),
            false => self.group.get_column_page_reader(i)?,
        };
        Ok(Box::new(CheckedPages(pages)))
    }

    fn get_column_bloom_filter(&self, i: usize) -> Option<&Sbbf> {
        self.group.get_column_bloom_filter(i)
    }

    fn get_row_iter(&self, projection: Option<Type>) -> ParquetResult<RowIter<'_>> {
        self.group.get_row_iter(projection)
    }
}

/// Pages whose dictionaries have no more values than bytes.
struct CheckedPages(Box<dyn PageReader>);

impl Iterator for CheckedPages {
    type Item = ParquetResult<Page>;

    fn next(&mut self) -> Option<ParquetResult<Page>> {
        self.get_next_page().transpose()
    }
}

impl PageReader for CheckedPages {
    fn get_next_page(&mut self) -> ParquetResult<Option<Page>> {
        let page = self.0.get_next_page()?;
        if let Some(Page::DictionaryPage { buf, num_values, .. }) = &page
            && *num_values as usize > buf.len()
        {
            let reason = "a dictionary has more values than bytes";
            return Err(ParquetError::General(reason.into()));
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> ParquetResult<Option<PageMetadata>> {
        self.0.peek_next_page()
    }

    fn skip_next_page(&mut self) -> ParquetResult<()> {
        self.0.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> ParquetResult<bool> {
        self.0.at_record_boundary()
    }
}

/// What the rows may still take, of so many bytes.
struct MemoryBudget {
    left: u64,
    limit: u64,
}

/// Takes `bytes` off what is left.
fn charge(room: &mut MemoryBudget, bytes: usize) -> std::result::Result<(), String> {
    let too_large = || {
        format!("the rows take more than {} bytes, the most for a file of this size", room.limit)
    };
    room.left = room.left.checked_sub(bytes as u64).ok_or_else(too_large)?;
    Ok(())
}

fn object(
    record: &Record,
    room: &mut MemoryBudget,
) -> std::result::Result<Map<String, Value>, String> {
    let mut fields = Map::new();
    for (name, field) in record.get_column_iter() {
        charge(room, name.len() + FIELD_SIZE)?;
        if fields.insert(name.clone(), json(field, room)?).is_some() {
            return Err(format!("the column `{name}` appears twice"));
        }
    }
    Ok(fields)
}

fn json(field: &Field, room: &mut MemoryBudget) -> std::result::Result<Value, String> {
    charge(room, VALUE_SIZE)?;
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
            charge(room, text.len())?;
            text.as_str().into()
        }
        Field::Bytes(bytes) => {
            charge(room, 2 * bytes.len())?;
            text_or_hex(bytes.data()).into()
        }
        Field::Group(record) => Value::Object(object(record, room)?),
        Field::ListInternal(list) => {
            let items = list.elements().iter().map(|item| json(item, room));
            Value::Array(items.collect::<std::result::Result<_, _>>()?)
        }
        Field::MapInternal(map) => pairs(map.entries(), room)?,
    })
}

fn float(value: f64) -> Value {
    Number::from_f64(value).map_or(Value::Null, Value::Number)
}

fn text_or_hex(bytes: &[u8]) -> String {
    let hex = |_| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    std::str::from_utf8(bytes).map(str::to_owned).unwrap_or_else(hex)
}

fn pairs(
    entries: &[(Field, Field)],
    room: &mut MemoryBudget,
) -> std::result::Result<Value, String> {
    if entries.iter().all(|(key, _)| matches!(key, Field::Str(_))) {
        let mut fields = Map::new();
        for (key, value) in entries {
            if let Field::Str(key) = key {
                charge(room, key.len() + FIELD_SIZE)?;
                fields.insert(key.clone(), json(value, room)?);
            }
        }
        return Ok(Value::Object(fields));
    }
    let pair = |(key, value): &(Field, Field)| {
        Ok(Value::Array(vec![json(key, room)?, json(value, room)?]))
    };
    entries.iter().map(pair).collect::<std::result::Result<_, String>>().map(Value::Array)
}

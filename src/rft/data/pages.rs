//! Pages of a Parquet column: what they claim is checked before anything is decoded, and the two
//! codecs whose output has no bound of its own, Zstandard and Brotli, are decoded here.
//!
//! A page's header is a struct in Thrift's compact protocol. A few bytes of a page may claim
//! gigabytes, and may even hold them.

use std::collections::BTreeMap;
use std::io::Read;

use bytes::Bytes;
use parquet::basic::{Compression, Encoding};
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use ruzstd::decoding::StreamingDecoder;

/// Largest page in the encoding that repeats the starts of texts, in bytes: a value may be a copy of
/// nearly the whole page. Writers end pages at one MiB.
const PREFIX_LIMIT: usize = 4 << 20;
/// Most structs in structs of a header.
const DEPTH_LIMIT: usize = 16;

fn wrong<T>(reason: impl Into<String>) -> Result<T> {
    Err(ParquetError::General(reason.into()))
}

/// What a page's header says, by field and field of the struct in it.
struct Header {
    fields: BTreeMap<(i64, i64), i64>,
    /// Its own length in bytes.
    length: usize,
}

/// The structs of a header that describe a page, by their field numbers.
const DATA: i64 = 5;
const DICTIONARY: i64 = 7;
const DATA_V2: i64 = 8;

impl Header {
    fn read(bytes: &[u8]) -> Result<Header> {
        let mut thrift = Thrift { bytes, at: 0, fields: BTreeMap::new() };
        thrift.fields_of(0, 0)?;
        Ok(Header { fields: thrift.fields, length: thrift.at })
    }

    fn get(&self, outer: i64, inner: i64) -> Result<i64> {
        let value = self.fields.get(&(outer, inner)).copied();
        value.ok_or_else(|| ParquetError::General("a page's header lacks a field".into()))
    }

    fn count(&self, outer: i64, inner: i64) -> Result<u32> {
        let value = self.get(outer, inner)?;
        value.try_into().or_else(|_| wrong(format!("a page's header claims {value}")))
    }

    fn encoding(&self, outer: i64, inner: i64) -> Result<Encoding> {
        Ok(match self.get(outer, inner)? {
            0 => Encoding::PLAIN,
            2 => Encoding::PLAIN_DICTIONARY,
            3 => Encoding::RLE,
            5 => Encoding::DELTA_BINARY_PACKED,
            6 => Encoding::DELTA_LENGTH_BYTE_ARRAY,
            7 => Encoding::DELTA_BYTE_ARRAY,
            8 => Encoding::RLE_DICTIONARY,
            9 => Encoding::BYTE_STREAM_SPLIT,
            other => return wrong(format!("the encoding {other} is not supported")),
        })
    }

    /// The struct that describes the page; `None` for pages that hold no values.
    fn kind(&self) -> Result<Option<i64>> {
        Ok(match self.get(0, 1)? {
            0 => Some(DATA),
            2 => Some(DICTIONARY),
            3 => Some(DATA_V2),
            _ => None,
        })
    }

    /// Length of the page in the file, and decoded.
    fn sizes(&self) -> Result<(usize, usize)> {
        Ok((self.count(0, 3)? as usize, self.count(0, 2)? as usize))
    }

    /// Bytes of a page's levels, which stand before its compressed part.
    fn levels(&self) -> Result<usize> {
        Ok(self.count(DATA_V2, 5)? as usize + self.count(DATA_V2, 6)? as usize)
    }
}

/// A reader of the compact protocol that keeps integers and skips the rest.
struct Thrift<'a> {
    bytes: &'a [u8],
    at: usize,
    fields: BTreeMap<(i64, i64), i64>,
}

impl Thrift<'_> {
    fn byte(&mut self) -> Result<u8> {
        let byte = self.bytes.get(self.at).copied();
        self.at += 1;
        byte.ok_or_else(|| ParquetError::General("a page's header is cut off".into()))
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        wrong("a page's header holds a number of more than 64 bits")
    }

    fn integer(&mut self) -> Result<i64> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn skip_bytes(&mut self, count: u64) -> Result<()> {
        if count > (self.bytes.len() - self.at.min(self.bytes.len())) as u64 {
            return wrong("a page's header is cut off");
        }
        self.at += count as usize;
        Ok(())
    }

    /// The fields of the struct that is field `outer`, at `depth` structs.
    fn fields_of(&mut self, outer: i64, depth: usize) -> Result<()> {
        let mut field = 0i64;
        loop {
            let head = self.byte()?;
            if head == 0 {
                return Ok(());
            }
            field = match head >> 4 {
                0 => self.integer()?,
                delta => field.saturating_add(delta.into()),
            };
            let value = match head & 0xf {
                1 => Some(1),
                2 => Some(0),
                kind => self.value(kind, field, depth)?,
            };
            if let (Some(value), 0..=1) = (value, depth) {
                self.fields.insert(if depth == 0 { (0, field) } else { (outer, field) }, value);
            }
        }
    }

    /// A value of type `kind`; the integer, if it is one.
    fn value(&mut self, kind: u8, field: i64, depth: usize) -> Result<Option<i64>> {
        if depth > DEPTH_LIMIT {
            return wrong("a page's header nests too deep");
        }
        match kind {
            // A boolean in a list.
            1..=3 => Ok(Some(self.byte()? as i8 as i64)),
            4..=6 => self.integer().map(Some),
            7 => self.skip_bytes(8).map(|()| None),
            8 => {
                let length = self.varint()?;
                self.skip_bytes(length).map(|()| None)
            }
            9 | 10 => self.list(depth).map(|()| None),
            12 => self.fields_of(field, depth + 1).map(|()| None),
            _ => wrong(format!("a page's header holds a value of unknown type {kind}")),
        }
    }

    fn list(&mut self, depth: usize) -> Result<()> {
        let head = self.byte()?;
        let count = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
        for _ in 0..count {
            self.value(head & 0xf, 0, depth + 1)?;
        }
        Ok(())
    }
}

/// What the pages of a file may still claim.
pub(super) struct Budget {
    pub bytes: u64,
    pub values: u64,
}

/// Takes what the headers of a column's pages claim off `budget`.
pub(super) fn check(column: &Bytes, budget: &mut Budget) -> Result<()> {
    let mut at = 0;
    while at < column.len() {
        let header = Header::read(&column[at..])?;
        let (compressed, decoded) = header.sizes()?;
        at += header.length + compressed;
        let Some(kind) = header.kind()? else { continue };
        let inner = if kind == DATA_V2 { 4 } else { 2 };
        let prefixes = kind != DICTIONARY && header.get(kind, inner)? == 7;
        if prefixes && decoded > PREFIX_LIMIT {
            let reason = format!("a page of delta byte arrays is larger than {PREFIX_LIMIT} bytes");
            return wrong(reason);
        }
        let values = if kind == DICTIONARY { 0 } else { header.count(kind, 1)?.into() };
        let left = (budget.bytes.checked_sub(decoded as u64), budget.values.checked_sub(values));
        let (Some(bytes), Some(values)) = left else {
            return wrong("its pages claim more than a file of this size may decode to");
        };
        *budget = Budget { bytes, values };
    }
    Ok(())
}

/// Whether pages of this codec are decoded here.
pub(super) fn is_own(codec: Compression) -> bool {
    matches!(codec, Compression::ZSTD(_) | Compression::BROTLI(_))
}

/// The pages of a column that is compressed with a codec of [`is_own`].
pub(super) struct Pages {
    column: Bytes,
    codec: Compression,
}

impl Pages {
    pub fn new(column: Bytes, codec: Compression) -> Pages {
        Pages { column, codec }
    }

    /// The header of the next page with values; those without are passed over.
    fn header(&mut self) -> Result<Option<(Header, i64)>> {
        while !self.column.is_empty() {
            let header = Header::read(&self.column)?;
            if let Some(kind) = header.kind()? {
                return Ok(Some((header, kind)));
            }
            self.body(&header)?;
        }
        Ok(None)
    }

    /// Cuts off a page and returns what stands behind its header.
    fn body(&mut self, header: &Header) -> Result<Bytes> {
        let end = header.length + header.sizes()?.0;
        if end > self.column.len() {
            return wrong("a page is cut off");
        }
        Ok(self.column.split_to(end).slice(header.length..))
    }

    fn page(&self, header: &Header, kind: i64, body: Bytes) -> Result<Page> {
        let decoded = header.sizes()?.1;
        let num_values = header.count(kind, 1)?;
        if kind != DATA_V2 {
            let buf = self.decode(&body, Vec::new(), decoded)?;
            let encoding = header.encoding(kind, 2)?;
            if kind == DICTIONARY {
                let is_sorted = header.fields.get(&(kind, 3)) == Some(&1);
                return Ok(Page::DictionaryPage { buf, num_values, encoding, is_sorted });
            }
            return Ok(Page::DataPage {
                buf,
                num_values,
                encoding,
                def_level_encoding: header.encoding(kind, 3)?,
                rep_level_encoding: header.encoding(kind, 4)?,
                statistics: None,
            });
        }
        let levels = header.levels()?;
        if levels > body.len() || levels > decoded {
            return wrong("the levels of a page are longer than the page");
        }
        let is_compressed = header.fields.get(&(kind, 7)) != Some(&0);
        let buf = match is_compressed && decoded > levels {
            true => self.decode(&body[levels..], body[..levels].to_vec(), decoded)?,
            false => body,
        };
        Ok(Page::DataPageV2 {
            buf,
            num_values,
            encoding: header.encoding(kind, 4)?,
            num_nulls: header.count(kind, 2)?,
            num_rows: header.count(kind, 3)?,
            def_levels_byte_len: header.count(kind, 5)?,
            rep_levels_byte_len: header.count(kind, 6)?,
            is_compressed,
            statistics: None,
        })
    }

    /// `out` with what `bytes` decode to behind it: `size` bytes in all, and never more.
    fn decode(&self, bytes: &[u8], mut out: Vec<u8>, size: usize) -> Result<Bytes> {
        let room = (size - out.len()) as u64 + 1;
        match self.codec {
            Compression::BROTLI(_) => {
                brotli::Decompressor::new(bytes, 4096).take(room).read_to_end(&mut out)?;
            }
            Compression::ZSTD(_) => zstd(bytes, size, &mut out)?,
            other => return wrong(format!("{other} is not decoded here")),
        }
        if out.len() != size {
            return wrong(format!("a page does not decode to the {size} bytes it claims"));
        }
        Ok(out.into())
    }
}

/// Appends the frames of `bytes` until `out` has more than `size` bytes.
fn zstd(mut bytes: &[u8], size: usize, out: &mut Vec<u8>) -> Result<()> {
    while !bytes.is_empty() && out.len() <= size {
        let room = (size - out.len()) as u64 + 1;
        // What a frame may look back on is allocated at once; 8 MiB are what decoders have to take.
        let window = (size as u64).max(8 << 20);
        let frame = StreamingDecoder::new_with_max_window_size(&mut bytes, window)
            .or_else(|e| wrong(format!("a page is no Zstandard frame: {e}")))?;
        frame.take(room).read_to_end(out)?;
    }
    Ok(())
}

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Result<Page>> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let Some((header, kind)) = self.header()? else { return Ok(None) };
        let body = self.body(&header)?;
        self.page(&header, kind, body).map(Some)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        let Some((header, kind)) = self.header()? else { return Ok(None) };
        let num_rows = if kind == DATA_V2 { Some(header.count(kind, 3)? as usize) } else { None };
        let num_levels = Some(header.count(kind, 1)? as usize);
        Ok(Some(PageMetadata { num_rows, num_levels, is_dict: kind == DICTIONARY }))
    }

    fn skip_next_page(&mut self) -> Result<()> {
        if let Some((header, _)) = self.header()? {
            self.body(&header)?;
        }
        Ok(())
    }
}

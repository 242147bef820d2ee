//! Scalars as TensorBoard reads them: `events.out.tfevents.*`, records of the protocol buffer
//! `Event` in TFRecord frames.
//!
//! ```text
//! frame    u64 length | masked CRC-32C of it | payload | masked CRC-32C of the payload
//! Event    1: wall_time f64 | 2: step i64 | 3: file_version | 5: Summary | 7: SessionLog
//! Summary  1: Value { 1: tag, 2: simple_value f32 }, repeated
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::train::run::metrics::Metrics;
use gradus::error::{Error, Result};

/// An event file that grows.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Begins a file in `folder`. A run that goes on from step `first` has TensorBoard forget what an
    /// older file says of that step and later ones; one that begins removes older files.
    ///
    /// # Errors
    /// `Io`.
    pub fn create(folder: &Path, first: u64) -> Result<EventWriter> {
        if first == 0 {
            remove_events(folder)?;
        }
        let now = since_epoch();
        let name = format!("events.out.tfevents.{:010}.{:09}.gradus", now as u64, nanos(now));
        let path = folder.join(name);
        let file = OpenOptions::new().create_new(true).append(true).open(&path);
        let mut writer = EventWriter { file: file.map_err(Error::io(&path))?, path };
        let mut event = Message::new().double(1, now);
        event.bytes(3, b"brain.Event:2");
        writer.frame(&event.0)?;
        if first > 0 {
            const START: u64 = 1;
            let mut event = Message::new().double(1, now).int(2, first);
            event.bytes(7, &Message::new().int(1, START).0);
            writer.frame(&event.0)?;
        }
        Ok(writer)
    }

    /// Appends the values of a step; those that are not finite are left out.
    ///
    /// # Errors
    /// `Io`.
    pub fn write(&mut self, step: u64, metrics: &Metrics) -> Result<()> {
        let mut summary = Message::new();
        for (name, value) in metrics.named().filter(|(_, value)| value.is_finite()) {
            let mut entry = Message::new();
            entry.bytes(1, name.as_bytes());
            summary.bytes(1, &entry.float(2, value as f32).0);
        }
        let mut event = Message::new().double(1, since_epoch()).int(2, step);
        event.bytes(5, &summary.0);
        self.frame(&event.0)
    }

    /// Waits until everything is on the disk.
    ///
    /// # Errors
    /// `Io`.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io(&self.path))
    }

    fn frame(&mut self, payload: &[u8]) -> Result<()> {
        let length = (payload.len() as u64).to_le_bytes();
        let mut frame = length.to_vec();
        frame.extend(masked_crc(&length).to_le_bytes());
        frame.extend_from_slice(payload);
        frame.extend(masked_crc(payload).to_le_bytes());
        self.file.write_all(&frame).map_err(Error::io(&self.path))
    }
}

fn remove_events(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("events.out.tfevents.") && name.ends_with(".gradus") {
            fs::remove_file(&path).map_err(Error::io(&path))?;
        }
    }
    Ok(())
}

fn since_epoch() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn nanos(seconds: f64) -> u64 {
    (seconds.fract() * 1e9) as u64
}

/// A protocol buffer being written.
struct Message(Vec<u8>);

impl Message {
    fn new() -> Message {
        Message(Vec::new())
    }

    fn varint(&mut self, mut x: u64) {
        while x >= 0x80 {
            self.0.push(x as u8 | 0x80);
            x >>= 7;
        }
        self.0.push(x as u8);
    }

    fn int(mut self, field: u64, x: u64) -> Message {
        self.varint(field << 3);
        self.varint(x);
        self
    }

    fn double(mut self, field: u64, x: f64) -> Message {
        self.varint(field << 3 | 1);
        self.0.extend(x.to_le_bytes());
        self
    }

    fn float(mut self, field: u64, x: f32) -> Message {
        self.varint(field << 3 | 5);
        self.0.extend(x.to_le_bytes());
        self
    }

    fn bytes(&mut self, field: u64, x: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(x.len() as u64);
        self.0.extend_from_slice(x);
    }
}

/// CRC-32C (Castagnoli), bit by bit: a frame is a few hundred bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ byte as u32, |crc, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1)))
    })
}

/// TFRecord's mask, so that a checksum of data that holds checksums stays one.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::run::metrics::Metric;

    #[test]
    fn checksums_are_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa, "RFC 3720, B.4");
    }

    #[test]
    fn frames_hold_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(folder.path(), 7).unwrap();
        writer.write(300, &Metrics::from([(Metric::Reward, 0.5), (Metric::Kl, f64::NAN)])).unwrap();
        let bytes = std::fs::read(&writer.path).unwrap();
        let (mut at, mut payloads) = (0, Vec::new());
        while at < bytes.len() {
            let length = &bytes[at..at + 8];
            let n = u64::from_le_bytes(length.try_into().unwrap()) as usize;
            let crc = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            assert_eq!(crc(at + 8), masked_crc(length));
            let payload = &bytes[at + 12..at + 12 + n];
            assert_eq!(crc(at + 12 + n), masked_crc(payload));
            payloads.push(payload[9..].to_vec());
            at += 16 + n;
        }
        assert_eq!(payloads[0], [&[0x1a, 13], &b"brain.Event:2"[..]].concat());
        assert_eq!(payloads[1], [0x10, 7, 0x3a, 2, 0x08, 1]);
        let value = [&[0x0a, 6], &b"reward"[..], &[0x15], &0.5f32.to_le_bytes()].concat();
        let summary = [&[0x0a, value.len() as u8], &value[..]].concat();
        let event = [&[0x10, 0xac, 0x02, 0x2a, summary.len() as u8], &summary[..]].concat();
        assert_eq!(payloads[2], event);
    }
}

//! The numbers among a call's arguments, and what its outputs hold.

use super::calls::{Call, GUARD, size_of_dtype};
use super::parsed::Kind;

/// A plain field of one of a call's structs.
#[derive(Clone, Debug)]
pub struct Scalar {
    pub name: String,
    pub integer: bool,
    pub bytes: usize,
    piece: usize,
    at: usize,
}

impl Call {
    /// Every number that an argument struct holds, in its own structs too.
    pub fn numbers(&self) -> Vec<Scalar> {
        let plain = |(piece, at, kind, name): &(usize, usize, Kind, String)| Scalar {
            name: name.clone(),
            integer: *kind != Kind::F64,
            bytes: if *kind == Kind::I32 { 4 } else { 8 },
            piece: *piece,
            at: *at,
        };
        self.scalars.iter().map(plain).collect()
    }

    pub fn set_number(&mut self, scalar: &Scalar, value: f64) {
        match (scalar.integer, scalar.bytes) {
            (false, _) => self.put(scalar.piece, scalar.at, value),
            (true, 4) => self.put(scalar.piece, scalar.at, value as i32),
            (true, _) => self.put(scalar.piece, scalar.at, value as i64),
        }
        self.settle();
    }

    /// What the call's memory holds now is how it was before it.
    pub fn settle(&mut self) {
        self.pieces.iter_mut().for_each(|piece| piece.before = piece.words.clone());
    }

    /// The memory of tensors and results holds the same bits; structs are full of addresses.
    pub fn holds_what(&self, other: &Call) -> bool {
        let written = |call: &Call| -> Vec<Vec<u64>> {
            call.pieces.iter().filter(|p| p.written).map(|p| p.words.clone()).collect()
        };
        written(self) == written(other)
    }

    /// Nothing was written.
    pub fn is_untouched(&self) -> bool {
        self.pieces.iter().all(|piece| piece.words == piece.before)
    }

    /// Floats of every output tensor, by name.
    pub fn outputs(&mut self) -> Vec<(String, Vec<f64>)> {
        let mut all = Vec::new();
        for place in self.tensors.clone() {
            let t = *self.descriptor(&place);
            if !self.pieces[place.piece].written || t.dtype < 3 {
                continue;
            }
            let n: i64 = t.shape[..t.rank as usize].iter().product();
            let bytes: &[u8] = {
                let words = &self.pieces[place.piece].words[GUARD..];
                // SAFETY: bytes of words.
                unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), 8 * words.len()) }
            };
            let element = |bytes: &[u8]| match t.dtype {
                3 => half::f16::from_le_bytes(bytes.try_into().unwrap()).to_f64(),
                4 => half::bf16::from_le_bytes(bytes.try_into().unwrap()).to_f64(),
                5 => f32::from_le_bytes(bytes.try_into().unwrap()) as f64,
                _ => f64::from_le_bytes(bytes.try_into().unwrap()),
            };
            let size = size_of_dtype(t.dtype);
            all.push((
                place.name,
                bytes.chunks_exact(size).take(n as usize).map(element).collect(),
            ));
        }
        all
    }
}

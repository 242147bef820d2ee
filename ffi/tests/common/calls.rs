//! Calls of every op, made from the header: valid ones by what its comments say, and others by changing
//! those. A changed call stays inside its own memory or breaks a rule that the library can see, so any
//! crash is the library's.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};
use std::sync::atomic::{AtomicI64, Ordering};

use gradus_c::sys;

use super::parsed::{Field, Kind, Struct};

/// SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    pub fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Ways to break a tensor.
pub const BREAKS: usize = 9;

/// Words before and behind every piece of memory that nobody may touch, and words that a changed
/// extent may reach.
pub(super) const GUARD: usize = 16;
const SLACK: usize = if cfg!(miri) { 64 } else { 2048 };
const PATTERN: u64 = 0xfeed_f00d_dead_beef;

/// A piece of memory of a call.
pub struct Piece {
    pub(super) words: Vec<u64>,
    pub(super) before: Vec<u64>,
    pub(super) written: bool,
}

/// Where a tensor's descriptor stands, and which memory it has.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) name: String,
    holder: usize,
    word: usize,
    pub(super) piece: usize,
}

/// A call with all its memory. Structs are pieces too; the first is the arguments.
pub struct Call {
    pub op: String,
    size: usize,
    pub(super) pieces: Vec<Piece>,
    pub(super) tensors: Vec<Place>,
    /// (piece, byte, kind, name) of plain fields, those of structs in a struct among them.
    pub(super) scalars: Vec<(usize, usize, Kind, String)>,
}

fn dtype_number(letter: &str, float: i32) -> i32 {
    match letter {
        "u8" => 0,
        "i32" => 1,
        "i64" => 2,
        "f32" => 5,
        "f64" => 6,
        _ => float,
    }
}

pub(super) fn size_of_dtype(dtype: i32) -> usize {
    match dtype {
        0 => 1,
        3 | 4 => 2,
        1 | 5 => 4,
        _ => 8,
    }
}

/// Factors of the extents that count rows, and of those that are their widths.
pub static LONG: AtomicI64 = AtomicI64::new(1);
pub static WIDE: AtomicI64 = AtomicI64::new(1);

fn factors() -> (i64, i64) {
    (LONG.load(Ordering::Relaxed), WIDE.load(Ordering::Relaxed))
}

/// Extents by the letters of the header.
fn extents(op: &str) -> HashMap<&'static str, i64> {
    let (long, wide) = factors();
    let mut all = HashMap::from([
        ("T", 6 * long),
        ("V", 9 * wide),
        ("V_alloc", 9 * wide + 2),
        ("B", 2 * long),
        ("G", 1),
        ("H", 4),
        ("D", 16),
        ("M", 5 * long),
        ("N", 8 * wide),
        ("K", 64),
        ("r", 4),
        ("P", 2),
        ("n", 3 * wide),
        ("S", 6 * long),
        ("Hq", 4),
        ("Hkv", 2),
        ("E", 2),
        ("Q", 6 * long),
        ("R", 6 * long),
        ("blocks", 8 * wide),
        ("blocksize", 64),
        ("capacity", 512 * long * wide),
        ("count", 2),
        ("nested_blocksize", 256),
    ]);
    if op.starts_with("gather_k") || op == "top_k" {
        all.insert("K", 3);
    }
    if op == "rope" {
        all.insert("P", 6);
    }
    if !op.starts_with("attention") && op != "rope" {
        all.insert("D", 16 * wide);
    }
    all
}

/// `ceil(N K / 2)`, `B + 1`, `D / 2`, `16`.
fn evaluate(text: &str, letters: &HashMap<&str, i64>) -> i64 {
    let value =
        |word: &str| word.parse().unwrap_or_else(|_| letters.get(word).copied().unwrap_or(6));
    let product = |text: &str| text.split_whitespace().map(value).product::<i64>();
    if let Some(inner) = text.strip_prefix("ceil(") {
        let (above, below) = inner.trim_end_matches(')').split_once('/').unwrap();
        return (product(above) as u64).div_ceil(product(below) as u64) as i64;
    }
    if let Some((a, b)) = text.split_once('+') {
        return product(a) + product(b);
    }
    match text.split_once('/') {
        Some((a, b)) => product(a) / product(b),
        None => product(text),
    }
}

impl Call {
    /// A call with all required fields, and some of the optional ones if `optional`.
    pub fn valid(op: &Struct, structs: &[Struct], rng: &mut Rng, optional: bool) -> Call {
        let name = op.name.trim_end_matches("_args").to_string();
        let mut call = Call {
            op: name,
            size: op.size,
            pieces: Vec::new(),
            tensors: Vec::new(),
            scalars: Vec::new(),
        };
        let real = !op.fields.iter().any(|f| f.note().dtype == "F");
        let float = if real { rng.pick(&[5, 6]) } else { rng.pick(&[3, 4, 5, 6]) };
        let args = call.piece(op.size / 8 + SLACK, false);
        let c_name = CString::new(call.op.clone()).unwrap();
        // SAFETY: the piece has at least so many bytes.
        let status = unsafe { sys::gradus_init(c_name.as_ptr(), call.at(args).cast(), op.size) };
        assert_eq!(status, 0);
        call.fill(args, op, structs, rng, (float, optional));
        call.pieces.iter_mut().for_each(|piece| piece.before = piece.words.clone());
        call
    }

    fn piece(&mut self, words: usize, written: bool) -> usize {
        let mut all = vec![PATTERN; words + 2 * GUARD];
        all[GUARD..GUARD + words].fill(0);
        self.pieces.push(Piece { words: all, before: Vec::new(), written });
        self.pieces.len() - 1
    }

    fn at(&mut self, piece: usize) -> *mut u64 {
        // SAFETY: a piece has its guards.
        unsafe { self.pieces[piece].words.as_mut_ptr().add(GUARD) }
    }

    pub(super) fn put<T>(&mut self, piece: usize, byte: usize, value: T) {
        // SAFETY: fields lie inside their struct's piece.
        unsafe { self.at(piece).cast::<u8>().add(byte).cast::<T>().write_unaligned(value) }
    }

    fn fill(
        &mut self,
        piece: usize,
        s: &Struct,
        structs: &[Struct],
        rng: &mut Rng,
        how: (i32, bool),
    ) {
        let mut pairs = HashMap::new();
        for field in &s.fields {
            let stem =
                field.name.trim_end_matches("_chosen").trim_end_matches("_rejected").to_string();
            let taken = *pairs.entry(stem).or_insert_with(|| how.1 && rng.below(2) == 0);
            match &field.kind {
                Kind::Size => {}
                Kind::Tensor => {
                    let note = field.note();
                    let alternative = field.note.starts_with("or ") || field.name == "pages";
                    let nested = field.name.starts_with("nested_") && s.name == "nf4";
                    if !alternative && !nested && (!note.optional || taken) {
                        self.tensor(piece, field, rng, how.0);
                    }
                }
                Kind::Given(to) => self.given(piece, (s, field), to, structs, rng, how),
                Kind::Result(_) => {
                    let target = self.piece(512, true);
                    self.point(piece, field, target);
                }
                Kind::Struct(inner) => {
                    let inner = structs.iter().find(|s| s.name == *inner).unwrap();
                    for f in &inner.fields {
                        let bytes = if f.kind == Kind::I32 { 4 } else { 8 };
                        let places = (0..f.count).map(|i| field.offset + f.offset + i * bytes);
                        let each = places.map(|at| (piece, at, f.kind.clone(), f.name.clone()));
                        self.scalars.extend(each);
                    }
                }
                kind => {
                    self.scalars.push((piece, field.offset, kind.clone(), field.name.clone()));
                    self.scalar(piece, field);
                }
            }
        }
    }

    fn scalar(&mut self, piece: usize, field: &Field) {
        let value = match field.name.as_str() {
            "vocab" => 9 * factors().1,
            "n" => 8 * factors().1,
            "k" | "blocksize" => 64,
            "nested_blocksize" => 256,
            "dtype" => return self.put(piece, field.offset, 4i32),
            _ => return,
        };
        self.put(piece, field.offset, value);
    }

    /// A struct that the op reads, or a list of them with its count.
    fn given(
        &mut self,
        piece: usize,
        (holder, field): (&Struct, &Field),
        to: &str,
        structs: &[Struct],
        rng: &mut Rng,
        how: (i32, bool),
    ) {
        if field.note.starts_with("or ") || field.note.contains("may be NULL") {
            return;
        }
        let counter = holder.fields.iter().find(|f| f.name == format!("{}_count", field.name));
        let count = if counter.is_some() && to == "nf4" { 2 } else { 1 };
        let s = structs.iter().find(|s| s.name == to).expect("a struct of the header");
        let target = self.piece(count * s.size / 8 + 8, false);
        if to == "tensor" {
            let (name, note) = (field.name.clone(), "in F [T, D]".to_string());
            let one = Field { name, kind: Kind::Tensor, offset: 0, count: 1, place: 0, note };
            self.tensor(target, &one, rng, how.0);
        } else {
            for i in 0..count {
                let moved =
                    s.fields.iter().map(|f| Field { offset: f.offset + i * s.size, ..f.clone() });
                let one = Struct { fields: moved.collect(), ..s.clone() };
                self.fill(target, &one, structs, rng, how);
            }
        }
        if let Some(counter) = counter {
            self.put(piece, counter.offset, count as i64);
        }
        self.point(piece, field, target);
    }

    fn point(&mut self, piece: usize, field: &Field, target: usize) {
        // As a pointer: Miri follows where it may point.
        let at = self.at(target);
        self.put(piece, field.offset, at);
    }

    fn tensor(&mut self, holder: usize, field: &Field, rng: &mut Rng, float: i32) {
        let note = field.note();
        let letters = extents(&self.op);
        let any = vec!["T".to_string(), "D".to_string()];
        let list = if note.extents == ["any"] { &any } else { &note.extents };
        let mut shape: Vec<i64> = list.iter().map(|e| evaluate(e, &letters)).collect();
        if self.op == "adamw_8bit" && field.name.ends_with("_absmax") {
            shape = vec![1];
        }
        let dtype = dtype_number(&note.dtype, float);
        let numel: i64 = shape.iter().product();
        let words = (numel as usize * size_of_dtype(dtype)).div_ceil(8) + SLACK;
        let piece = self.piece(words, note.written || field.name == "x" && self.op == "rope");
        self.contents(piece, field, dtype, &shape, rng);
        let mut t = sys::gradus_tensor {
            data: self.at(piece).cast(),
            dtype,
            memory: 0,
            rank: shape.len() as i32,
            reserved: 0,
            shape: [0; 4],
            strides: [0; 4],
        };
        let mut step = 1;
        for axis in (0..shape.len()).rev() {
            (t.shape[axis], t.strides[axis]) = (shape[axis], step);
            step *= shape[axis];
        }
        self.put(holder, field.offset, t);
        self.tensors.push(Place {
            name: field.name.clone(),
            holder,
            word: field.offset / 8,
            piece,
        });
    }

    /// Values that fit the field's meaning.
    fn contents(&mut self, piece: usize, field: &Field, dtype: i32, shape: &[i64], rng: &mut Rng) {
        let numel: i64 = shape.iter().product();
        let (last, long) = (shape[shape.len() - 1], factors().0);
        let total = match self.op.as_str() {
            op if op.contains("grouped") => 5 * long,
            _ if field.name == "offsets" => 2 * long,
            _ => 6 * long,
        };
        for i in 0..numel {
            let integer = match field.name.as_str() {
                "cu_seqlens" | "offsets" => i * total / (last - 1).max(1),
                "kv_start" => i * 3,
                "kv_len" => 3,
                "ids" => i % last.min(9) % 9,
                "targets" => i % 9,
                "adapter" => 0,
                "from_rows" | "to_rows" => i % (6 * long),
                "positions" | "index" => i % 6,
                "pairs" => i % 2,
                _ => 1 + i % 3,
            };
            let real = match field.name.as_str() {
                "uniform" | "v" => 0.1 + 0.8 * rng.unit(),
                name if name.ends_with("absmax") => 0.1 + 0.8 * rng.unit(),
                "quant_map" | "nested_quant_map" => {
                    2.0 * i as f64 / (numel - 1).max(1) as f64 - 1.0
                }
                _ => -2.0 * rng.unit(),
            };
            let at = i as usize * size_of_dtype(dtype);
            match dtype {
                0 if field.name == "packed" => self.put(piece, at, rng.next() as u8),
                0 => self.put(piece, at, (integer % 2) as u8),
                1 => self.put(piece, at, integer as i32),
                2 => self.put(piece, at, integer),
                3 => self.put(piece, at, half::f16::from_f64(real)),
                4 => self.put(piece, at, half::bf16::from_f64(real)),
                5 => self.put(piece, at, real as f32),
                _ => self.put(piece, at, real),
            }
        }
    }

    /// Changes something. What the descriptors then reach stays inside the call's memory, or is more
    /// than any memory.
    pub fn change(&mut self, rng: &mut Rng) {
        match rng.below(8) {
            0 => self.change_size(rng),
            1 | 2 if !self.scalars.is_empty() => self.change_scalar(rng),
            _ if !self.tensors.is_empty() => self.change_tensor(rng),
            _ => self.change_size(rng),
        }
        self.contain();
        self.pieces.iter_mut().for_each(|piece| piece.before = piece.words.clone());
    }

    fn change_size(&mut self, rng: &mut Rng) {
        let size = self.size;
        let new = rng.pick(&[0, 7, 8, size - 8, size + 8, 1 << 20]);
        self.put(0, 0, new);
        if new == size + 8 && rng.below(2) == 0 {
            self.put(0, size, 1u64);
        }
    }

    fn change_scalar(&mut self, rng: &mut Rng) {
        let (piece, byte, kind, name) = rng.pick(&self.scalars);
        match kind {
            Kind::I32 => {
                let value = rng.pick(&[-1, 0, 1, 2, 3, 5, 99, i32::MIN, i32::MAX]);
                self.put(piece, byte, value);
            }
            // A list that is said to be longer than it is cannot be seen through.
            _ if name.ends_with("_count") => {
                let value = rng.pick(&[-1, 0, i64::MIN, i64::MAX]);
                self.put(piece, byte, value);
            }
            Kind::I64 => {
                let value = rng.pick(&[-1, 0, 1, 2, 31, 32, 64, 4096, 8192, i64::MIN, i64::MAX]);
                self.put(piece, byte, value);
            }
            _ => {
                let value = rng.pick(&[
                    f64::NAN,
                    f64::INFINITY,
                    f64::NEG_INFINITY,
                    0.0,
                    -1.0,
                    1e300,
                    5e-324,
                ]);
                self.put(piece, byte, value);
            }
        }
    }

    pub(super) fn descriptor(&mut self, place: &Place) -> &mut sys::gradus_tensor {
        let at = self.at(place.holder);
        // SAFETY: `tensor` wrote a descriptor there.
        unsafe { &mut *at.add(place.word).cast::<sys::gradus_tensor>() }
    }

    fn change_tensor(&mut self, rng: &mut Rng) {
        let (place, other) = (rng.pick(&self.tensors), rng.pick(&self.tensors));
        let other = self.descriptor(&other).data;
        let extreme = [0, -1, 1, 2, 3, 7, 1 << 40, i64::MAX, i64::MIN];
        let t = self.descriptor(&place);
        let axis = rng.below(4);
        match rng.below(9) {
            0 => t.data = std::ptr::null_mut(),
            1 => t.data = t.data.cast::<u8>().wrapping_add(1).cast(),
            2 => t.dtype = rng.pick(&[-1, 0, 1, 2, 3, 4, 5, 6, 7, 99]),
            3 => t.memory = rng.pick(&[1, 2, -1]),
            4 => t.rank = rng.pick(&[0, 1, 2, 3, 4, 5, -1]),
            5 => t.shape[axis] = rng.pick(&extreme),
            6 => t.strides[axis] = rng.pick(&extreme),
            7 => t.data = other,
            // SAFETY: numbers and a pointer.
            _ => *t = unsafe { std::mem::zeroed() },
        }
    }

    pub fn tensors(&self) -> usize {
        self.tensors.len()
    }

    /// Breaks one tensor in a way that no op may accept; its name and what was done, if it can be
    /// done here.
    pub fn break_tensor(&mut self, tensor: usize, kind: usize) -> Option<(String, &'static str)> {
        let place = self.tensors[tensor].clone();
        let t = self.descriptor(&place);
        let wide = size_of_dtype(t.dtype) > 1;
        let done = match kind {
            0 => {
                t.data = std::ptr::null_mut();
                "data NULL"
            }
            1 if wide => {
                t.data = t.data.cast::<u8>().wrapping_add(1).cast();
                "data misaligned"
            }
            2 => {
                t.dtype = 99;
                "dtype unknown"
            }
            3 => {
                t.memory = 1;
                "device memory on the CPU"
            }
            4 => {
                t.rank = 5;
                "rank 5"
            }
            5 => {
                t.shape[0] = -1;
                "negative extent"
            }
            6 => {
                t.strides[0] = -1;
                "negative stride"
            }
            7 => {
                t.shape[0] = i64::MAX / 2;
                "more than any memory"
            }
            8 => {
                *t = sys::gradus_tensor { data: std::ptr::null_mut(), rank: 0, ..*t };
                "absent"
            }
            _ => return None,
        };
        self.pieces.iter_mut().for_each(|piece| piece.before = piece.words.clone());
        Some((place.name, done))
    }

    /// Takes the memory away from tensors that would reach beyond it.
    fn contain(&mut self) {
        for place in self.tensors.clone() {
            let pieces: Vec<(usize, usize)> = self
                .pieces
                .iter()
                .map(|p| (p.words.as_ptr() as usize + 8 * GUARD, 8 * (p.words.len() - 2 * GUARD)))
                .collect();
            let t = self.descriptor(&place);
            let rank = t.rank.clamp(0, 4) as usize;
            let span = (0..rank).try_fold(1i128, |sum, axis| {
                let (n, stride) = (t.shape[axis] as i128, t.strides[axis] as i128);
                (n > 0 && stride >= 0).then(|| sum + (n - 1) * stride)
            });
            let bytes = span.map_or(0, |span| span * size_of_dtype(t.dtype) as i128);
            let start = t.data as usize;
            let own = pieces.iter().position(|(at, len)| (*at..*at + *len).contains(&start));
            let left = own.map_or(0, |own| (pieces[own].0 + pieces[own].1 - start) as i128);
            if bytes > left && bytes < 1 << 57 {
                t.data = std::ptr::null_mut();
            }
            // An output may have been moved into what was another tensor's memory.
            if let (Some(own), true) = (own, self.pieces[place.piece].written) {
                self.pieces[own].written = true;
            }
        }
    }

    /// What gradus_workspace_size says; panics if it wrote to any of the call's memory.
    pub fn workspace(&mut self, ctx: u64) -> (i32, usize) {
        let (args, op) = (self.at(0).cast::<c_void>(), CString::new(self.op.clone()).unwrap());
        let mut bytes = 0;
        // SAFETY: the op's own struct.
        let status = unsafe { sys::gradus_workspace_size(ctx, op.as_ptr(), args, &mut bytes) };
        for (i, piece) in self.pieces.iter().enumerate() {
            assert_eq!(piece.words, piece.before, "{}: piece {i} was written", self.op);
        }
        (status, bytes)
    }

    /// Runs the call; panics where the library breaks a promise of the header.
    pub fn run(&mut self, ctx: u64, stream: *mut c_void) -> i32 {
        // SAFETY: what the descriptors reach is the call's own, or nothing at all.
        self.run_with(|op, args| (unsafe { super::dispatch(op, ctx, stream, args) }, 0)).0
    }

    /// Runs the call by a function of the caller's, which may bring a number back.
    pub fn run_with(&mut self, call: impl FnOnce(&str, *mut c_void) -> (i32, i64)) -> (i32, i64) {
        let args = self.at(0).cast::<c_void>();
        let (status, number) = call(&self.op, args);
        let text = last_error();
        let what = format!("{}: status {status}, {text}", self.op);
        assert!(status != sys::GRADUS_PANIC as i32, "{what}");
        for (i, piece) in self.pieces.iter().enumerate() {
            let (n, len) = (GUARD, piece.words.len());
            let guards = piece.words[..n].iter().chain(&piece.words[len - n..]);
            assert!(
                guards.into_iter().all(|&word| word == PATTERN),
                "{what}: memory around piece {i}"
            );
            let kept = piece.words == piece.before;
            assert!(
                kept || piece.written && status != sys::GRADUS_INVALID_ARGUMENT as i32,
                "{what}: piece {i}"
            );
        }
        if status == sys::GRADUS_INVALID_ARGUMENT as i32 {
            let named =
                text.contains("argument `") && text.contains("got ") && text.contains("expected ");
            assert!(named && text.starts_with(&self.op[..3]), "{what}");
        }
        (status, number)
    }
}

/// The text of this thread's last failure.
pub fn last_error() -> String {
    // SAFETY: the text is this thread's and ends with NUL.
    unsafe { CStr::from_ptr(sys::gradus_last_error()) }.to_string_lossy().into_owned()
}

/// A context.
pub fn create(device: &str) -> u64 {
    let device = CString::new(device).unwrap();
    let mut ctx = 0;
    // SAFETY: a text, and a place for a number.
    let status = unsafe { sys::gradus_create(device.as_ptr(), &mut ctx) };
    assert_eq!(status, 0, "{}", last_error());
    ctx
}

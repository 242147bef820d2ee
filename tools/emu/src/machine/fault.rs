//! What the emulator reports when a kernel does something wrong.

use std::fmt;

/// The kind of a fault: one per detector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The launch does not fit the kernel.
    Launch,
    /// An access outside every buffer.
    OutOfBounds,
    /// An address that is not a multiple of the access size.
    Misaligned,
    /// Memory or a register that was never written is used.
    Uninitialized,
    /// Two accesses without an order between them, one of them a write.
    Race,
    /// Data of an asynchronous copy or matrix product is used before it was waited for.
    InFlight,
    /// Generic-proxy writes read by the async proxy without a fence.
    MissingProxyFence,
    /// A barrier or warp operation that not all of its threads reach together.
    Divergence,
    /// Nothing can run any more.
    Deadlock,
    /// A barrier object, descriptor or tensor map used against its rules.
    Misuse,
    /// `trap`, or an instruction budget that ran out.
    Trap,
}

/// A fault and where it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which detector.
    pub kind: Kind,
    /// What is wrong.
    pub message: String,
    /// Name of the kernel.
    pub kernel: String,
    /// Line of the PTX text.
    pub line: u32,
    /// Text of that line.
    pub text: String,
    /// Block index.
    pub block: [u32; 3],
    /// Warp of the block.
    pub warp: u32,
}

impl Fault {
    /// A fault whose place the scheduler fills in.
    pub fn new(kind: Kind, message: impl Into<String>) -> Box<Fault> {
        Box::new(Fault {
            kind,
            message: message.into(),
            kernel: String::new(),
            line: 0,
            text: String::new(),
            block: [0; 3],
            warp: 0,
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.block;
        write!(f, "{:?}: {} in kernel `{}`", self.kind, self.message, self.kernel)?;
        write!(
            f,
            ", block ({x}, {y}, {z}), warp {}, PTX line {}: {}",
            self.warp, self.line, self.text
        )
    }
}

/// Result of executing something.
pub type Step<T> = Result<T, Box<Fault>>;
